"""Known answers computed with other people's code (the file names it): every one of a method that exists here is met."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs

Vector = dict[str, Any]

VECTORS: list[Vector] = json.loads(Path(__file__).parents[1].joinpath("vectors", "conformance.json").read_text())["vectors"]


def aggregate(vector: Vector, method: str, **options: Any) -> Tensor:
    """The combined gradient by every form of input, which must agree."""
    G = torch.tensor(vector["G"], dtype=torch.float64)
    result = gs.aggregate(G, method, **options)
    for form in (list(G), [[row] for row in G], [list(row.split(1)) for row in G]):
        other = gs.aggregate(form, method, **options)
        joined = torch.cat(other) if isinstance(other, list) else other
        torch.testing.assert_close(joined, result, rtol=1e-12, atol=1e-12 * float(G.abs().max()))
    assert isinstance(result, Tensor)
    return result


def meet(actual: Tensor, expected: list[float], atol: float) -> bool:
    return bool((actual - torch.tensor(expected, dtype=torch.float64)).abs().max() <= atol)


def plain(vector: Vector, method: str, **options: Any) -> None:
    assert meet(aggregate(vector, method, **options), vector["expected_out"], vector["atol"])
    if vector["expected_w"] is not None:
        K = gs.gram(torch.tensor(vector["G"], dtype=torch.float64))
        assert meet(gs.weights(K, method, **options), vector["expected_w"], vector["atol"])


def pcgrad(vector: Vector) -> None:
    assert vector["params"] == {"order": "ascending", "reduction": "sum"}
    plain(vector, "pcgrad", order="ascending")


def pcgrad_include_self(vector: Vector) -> None:
    assert vector["params"]["order"] == "ascending"  # and eps 1e-8 in denominators, which the vector's atol allows for
    plain(vector, "pcgrad", order="ascending", include_self=True)


def pcgrad_set(vector: Vector) -> None:
    """Random orders only give outcomes of the list, and some order gives each of them."""
    atol, T = vector["atol"], len(vector["G"])
    for seed in range(60):
        out = aggregate(vector, "pcgrad", seed=seed)
        assert any(meet(out, outcome, atol) for outcome in vector["outcomes_out"])
    explicit = [
        aggregate(vector, "pcgrad", order=torch.tensor(order))
        for order in itertools.product(itertools.permutations(range(T)), repeat=T)
    ]
    for outcome in vector["outcomes_out"]:
        assert any(meet(out, outcome, atol) for out in explicit)
    assert meet(torch.stack(explicit).mean(0), vector["expected_out"], atol)


def sequence(vector: Vector, method: str, weights: bool = False, **options: Any) -> None:
    """The steps of an aggregator, of which the vector tells the outputs, or the weights."""
    for form in (lambda G: G, list, lambda G: [list(row.split(1)) for row in G]):
        surgery = gs.GradientAggregator(method, **options)
        losses = vector.get("sequence_losses") or [None] * len(vector["expected_seq"])
        for G, L, expected in zip(vector["sequence_G"], losses, vector["expected_seq"], strict=True):
            told = None if L is None else torch.tensor(L, dtype=torch.float64)
            out = surgery.aggregate(form(torch.tensor(G, dtype=torch.float64)), told)
            joined = torch.cat(out) if isinstance(out, list) else out
            assert meet(surgery.weights if weights else joined, expected, vector["atol"])
        assert meet(joined, vector["expected_out"], vector["atol"])


def crossed(vector: Vector, method: str, **options: Any) -> None:
    """A = J1 J2^T, which the vectors take for J2 = 0.9 J1; the weights of two steps."""
    G, A = (torch.tensor(vector[name], dtype=torch.float64) for name in ("G", "cross_gram"))
    torch.testing.assert_close(G @ (0.9 * G).T, A)
    assert meet(gs.weights(A, method, **options), vector["expected_seq"][0], vector["atol"])
    surgery = gs.GradientAggregator(method, **options)
    for expected in vector["expected_seq"]:
        out = surgery.aggregate(G, against=0.9 * G)
        assert surgery.weights is not None
        assert meet(surgery.weights, expected, vector["atol"])
    assert meet(surgery.weights, vector["expected_w"], vector["atol"])
    assert isinstance(out, Tensor)
    assert meet(out, vector["expected_out"], vector["atol"] * float(G.abs().max()))


def sdmgrad(vector: Vector) -> None:
    options = dict(vector["params"])
    crossed(vector, "sdmgrad", lam=options.pop("lambda"), **options)


def alignedmtl(vector: Vector) -> None:
    plain(vector, "alignedmtl", **vector["params"])


def config(vector: Vector) -> None:
    plain(vector, "config", **vector["params"])


def mgda(vector: Vector) -> None:
    """The parameters are those of Frank-Wolfe, which comes near the minimum."""
    assert set(vector["params"]) <= {"epsilon", "max_iters"}
    plain(vector, "mgda")


def mgda_gn(vector: Vector) -> None:
    """The weights there are those of the normalised gradients, w_i γ_i here."""
    gn, losses = vector["params"]["gn"], torch.tensor(vector["losses"], dtype=torch.float64)
    G = torch.tensor(vector["G"], dtype=torch.float64)
    assert meet(aggregate(vector, "mgda", gn=gn, losses=losses), vector["expected_out"], vector["atol"])
    gamma = torch.ones(len(G), dtype=torch.float64)
    if gn in ("l2", "loss+"):
        gamma = gamma * G.norm(dim=1)
    if gn in ("loss", "loss+"):
        gamma = gamma * losses
    assert meet(gs.weights(gs.gram(G), "mgda", gn=gn, losses=losses) * gamma, vector["exact_simplex_w"], 1e-9)


def cagrad(vector: Vector) -> None:
    """norm_eps only matters where the best combination vanishes."""
    plain(vector, "cagrad", **{name: value for name, value in vector["params"].items() if name != "norm_eps"})


def approximate(vector: Vector, name: str) -> None:
    """Another's loose solver, within the atol that its vector has for it; the number of its iterations is nothing of ours."""
    plain(vector, name, **{key: value for key, value in vector["params"].items() if key != "optim_niter"})


def gradvac_seq(vector: Vector) -> None:
    """Consecutive steps of one memory, through ``GradientAggregator``."""
    assert vector["params"]["ema"] == "every pair"  # and eps 1e-8 in denominators, which the vector's atol allows for
    surgery = gs.GradientAggregator("gradvac", beta=vector["params"]["beta"], order="ascending")
    for rows, expected in zip(vector["sequence_G"], vector["expected_seq"], strict=True):
        G = torch.tensor(rows, dtype=torch.float64)
        z = torch.zeros(G.shape[1], dtype=torch.float64, requires_grad=True)
        sum((view * g).sum() for view, g in zip(surgery.split(z, len(G)), G, strict=True)).backward()  # type: ignore[union-attr]
        assert z.grad is not None
        assert meet(z.grad, expected, vector["atol"])


def graddrop(vector: Vector) -> None:
    U = torch.tensor(vector["params"]["U"], dtype=torch.float64)
    assert vector["params"]["f"] == "identity"
    plain(vector, "graddrop", uniform=U, leak=vector["params"]["leak"])


RUNNERS: dict[str, Callable[[Vector], None]] = {
    "sum": lambda vector: plain(vector, "sum"),
    "aligned_mtl": alignedmtl,
    "config": config,
    "imtlg": lambda vector: plain(vector, "imtlg"),
    "mean": lambda vector: plain(vector, "mean"),
    "fairgrad": lambda vector: approximate(vector, "fairgrad"),
    "fairgrad_exact": lambda vector: plain(vector, "fairgrad", **vector["params"]),
    "gradvac_seq": gradvac_seq,
    "nash_exact": lambda vector: plain(vector, "nashmtl", **vector["params"]),
    "nashmtl": lambda vector: approximate(vector, "nashmtl"),
    "graddrop": graddrop,
    "trimmed_mean": lambda vector: plain(vector, "trimmed_mean", **vector["params"]),
    "krum": lambda vector: plain(vector, "krum", **vector["params"]),
    "mgda": mgda,
    "mgda_exact": mgda,
    "mgda_gn": mgda_gn,
    "upgrad": lambda vector: plain(vector, "upgrad", **vector["params"]),
    "dualproj": lambda vector: plain(vector, "dualproj", **vector["params"]),
    "cagrad": cagrad,
    "cagrad_exact": cagrad,
    "pcd": lambda vector: plain(vector, "pcd", **vector["params"]),
    "pcgrad": pcgrad,
    "pcgrad_set": pcgrad_set,
    "pcgrad_include_self": pcgrad_include_self,
    "moco_seq": lambda vector: sequence(vector, "moco", **vector["params"]),
    "db_mtl_seq": lambda vector: sequence(vector, "dbmtl", **vector["params"]),
    "excess_mtl_seq": lambda vector: sequence(vector, "excessmtl", "WEIGHTS" in vector["note"], **vector["params"]),
    "sdmgrad_w": sdmgrad,
    "modo_w": lambda vector: crossed(vector, "modo", **vector["params"]),
}
COUNTS = {
    "aligned_mtl": 6,
    "cagrad": 6,
    "cagrad_exact": 10,
    "config": 6,
    "db_mtl_seq": 6,
    "dualproj": 6,
    "excess_mtl_seq": 6,
    "fairgrad": 6,
    "fairgrad_exact": 6,
    "graddrop": 6,
    "gradvac_seq": 6,
    "imtlg": 6,
    "krum": 6,
    "mean": 6,
    "mgda": 6,
    "mgda_exact": 10,
    "mgda_gn": 6,
    "moco_seq": 6,
    "modo_w": 6,
    "nash_exact": 10,
    "nashmtl": 6,
    "pcd": 6,
    "pcgrad": 10,
    "pcgrad_include_self": 6,
    "pcgrad_set": 10,
    "sdmgrad_w": 6,
    "sum": 6,
    "trimmed_mean": 6,
    "upgrad": 10,
}
CASES = [vector for vector in VECTORS if vector["method"] in RUNNERS and not vector["reference_unreliable"]]


@pytest.mark.parametrize("vector", CASES, ids=lambda vector: vector["id"])
def test_known_answer(vector: Vector) -> None:
    RUNNERS[vector["method"]](vector)


def test_no_known_answer_is_left_out() -> None:
    assert Counter(vector["method"] for vector in CASES) == COUNTS
    assert len({vector["id"] for vector in VECTORS}) == len(VECTORS)

    def bare(name: str) -> str:
        return name.replace("_", "")

    left = {vector["method"] for vector in VECTORS} - set(RUNNERS)
    unmet = {(method, name) for method in left for name in gs.methods() if bare(method).startswith(bare(name))}
    assert not unmet, f"vectors of registered methods without a runner: {sorted(unmet)}"
