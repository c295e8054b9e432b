"""Known answers computed with other people's code (the file names it): every one of a balancer is met, through its public class."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers import Balancer

Vector = dict[str, Any]

VECTORS: list[Vector] = json.loads(Path(__file__).parents[1].joinpath("vectors", "conformance.json").read_text())["vectors"]


def close(found: Any, expected: Any, atol: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )


def leaves(losses: list[float]) -> list[Tensor]:
    return [torch.tensor(loss, dtype=torch.float64, requires_grad=True) for loss in losses]


def gradients(losses: list[Tensor]) -> list[float]:
    return [loss.grad.item() for loss in losses]  # type: ignore[union-attr]


def value_and_weights(vector: Vector, balancer: Balancer) -> None:
    losses = leaves(vector["losses"])
    value = balancer(losses)
    value.backward()
    close(value, vector["expected_value"], vector["atol"])
    close(gradients(losses), vector["expected_w"], vector["atol"])
    close(balancer.weights, vector["expected_w"], vector["atol"])


def gls(vector: Vector) -> None:
    value_and_weights(vector, gs.GeometricMean(len(vector["losses"])))


def stch(vector: Vector) -> None:
    value_and_weights(vector, gs.SmoothTchebycheff(len(vector["losses"]), **vector["params"]))


def uw(vector: Vector) -> None:
    forms = {"kendall: sum exp(-s)L/2 + s/2": "kendall", "unscaled": "exponential", "liebel": "liebel"}
    form, s = forms[vector["params"]["form"]], vector["params"]["s"]
    # The vectors give Liebel's sigma itself; ours is s = log sigma^2, hence ds/dsigma = 2 / sigma.
    log_vars = [2 * math.log(x) for x in s] if form == "liebel" else s
    balancer = gs.UncertaintyWeighting(len(s), form=form).double()  # type: ignore[arg-type]
    with torch.no_grad():
        balancer.log_vars.copy_(torch.tensor(log_vars, dtype=torch.float64))
    value_and_weights(vector, balancer)
    assert balancer.log_vars.grad is not None
    chain = torch.tensor([2 / x for x in s] if form == "liebel" else [1.0] * len(s), dtype=torch.float64)
    expected = torch.tensor(vector["expected_dparams"], dtype=torch.float64)
    torch.testing.assert_close(balancer.log_vars.grad * chain, expected, rtol=1e-14, atol=vector["atol"])


def dwa_seq(vector: Vector) -> None:
    assert vector["note"] == "one batch per epoch; weights sum to T"
    T = len(vector["sequence_losses"][0])
    told, counting = gs.DynamicWeightAverage(T, **vector["params"]), gs.DynamicWeightAverage(T, window=1, **vector["params"])
    for values, expected in zip(vector["sequence_losses"], vector["expected_seq"], strict=True):
        for balancer in (told, counting):
            losses = leaves(values)
            balancer(losses).backward()
            close(gradients(losses), expected, vector["atol"])
        told.end_epoch()


def famo_seq(vector: Vector) -> None:
    sequence, options = vector["sequence_losses"], vector["params"]
    told = gs.FAMO(len(sequence[0]), **options)
    by_itself = gs.FAMO(len(sequence[0]), update_on_next_call=True, **options)
    assert len(sequence) == len(vector["expected_seq"]) + 1
    for values, after, expected in zip(sequence, sequence[1:], vector["expected_seq"], strict=False):
        for balancer in (told, by_itself):
            losses = leaves(values)
            balancer(losses).backward()
            close(gradients(losses), expected, vector["atol"])
            close(balancer.weights, expected, vector["atol"])
        told.update(leaves(after))


def _gradnorm(vector: Vector, layer: nn.Parameter, slopes: Tensor, parametrisation: Any, values: list[float]) -> gs.GradNorm:
    """GradNorm after a call with linear losses of these slopes [T, N] and values at the layer [N]."""
    balancer = gs.GradNorm(
        len(values),
        layer=layer,
        alpha=vector["params"]["alpha"],
        initial_losses=vector["losses0"] if "losses0" in vector else vector["params"]["losses0"],
        parametrisation=parametrisation,
    ).double()
    with torch.no_grad():
        balancer.task_weights.copy_(torch.tensor(values, dtype=torch.float64))
    losses = torch.tensor(vector["losses"], dtype=torch.float64) + slopes @ (layer - layer.detach())
    balancer(list(losses)).backward()
    return balancer


def gradnorm(vector: Vector) -> None:
    norms = torch.tensor(vector["params"]["norms_unweighted"], dtype=torch.float64)
    layer = nn.Parameter(torch.zeros_like(norms))
    balancer = _gradnorm(vector, layer, norms.diag(), "weights", vector["params"]["w"])
    close(balancer.task_weights.grad, vector["expected_dparams"], vector["atol"])


def gradnorm_libmtl(vector: Vector) -> None:
    assert vector["params"]["parametrisation"] == "T*softmax(logits), logits=1"
    G = torch.tensor(vector["G"], dtype=torch.float64)
    layer = nn.Parameter(torch.zeros_like(G[0]))
    balancer = _gradnorm(vector, layer, G, "softmax", [1.0] * len(G))
    close(balancer.weights, vector["expected_w"], vector["atol"])
    close(layer.grad, vector["expected_out"], vector["atol"])
    close(balancer.task_weights.grad, vector["expected_dlogits"], vector["atol"])


RUNNERS: dict[str, Callable[[Vector], None]] = {
    "gls": gls,
    "stch": stch,
    "uw": uw,
    "dwa_seq": dwa_seq,
    "famo_seq": famo_seq,
    "gradnorm": gradnorm,
    "gradnorm_libmtl": gradnorm_libmtl,
}
COUNTS = {"gls": 1, "stch": 4, "uw": 6, "dwa_seq": 1, "famo_seq": 2, "gradnorm": 3, "gradnorm_libmtl": 6}
CASES = [vector for vector in VECTORS if vector["method"] in RUNNERS]


@pytest.mark.parametrize("vector", CASES, ids=lambda vector: vector["id"])
def test_known_answer(vector: Vector) -> None:
    RUNNERS[vector["method"]](vector)


def test_no_known_answer_is_left_out() -> None:
    assert Counter(vector["method"] for vector in CASES) == COUNTS
    assert not any(vector["reference_unreliable"] for vector in CASES)
    left = {vector["method"] for vector in VECTORS} - set(RUNNERS)
    unmet = {(method, name) for method in left for name in gs.balancers() if method.split("_")[0] == name}
    assert not unmet, f"vectors of registered balancers without a runner: {sorted(unmet)}"
