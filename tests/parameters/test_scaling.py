"""Scaled losses: .grad is scaled, the decision is not; by a GradScaler, or by whatever multiplies ``total``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES
from parameters.comparison import aggregator, ascending, assert_gradients, assert_same_gradients, grads
from parameters.models import TASKS, build
from torch import nn
from torch.amp import GradScaler

METHODS = ["pcgrad", "cagrad", "nashmtl", "fairgrad"]  # of degree 1, and of degree 0: those do not hear the scale at all


def fixed(scale: float = 1024.0) -> GradScaler:
    return GradScaler("cpu", init_scale=scale, growth_interval=10**6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [2.0**10, 2.0**-7, 1000.0])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_gradients_are_scaled_and_the_decision_is_not(method: str, scale: float, options: dict[str, Any]) -> None:
    network, plain = build("unet"), build("unet")
    surgery = aggregator(method)
    surgery.backward(network.losses(), scaler=fixed(scale), **options)
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method]), rows, factor=scale)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_windows_are_scaled(method: str) -> None:
    network, plain = build("unet"), build("unet")
    surgery, scaler = aggregator(method), fixed()
    surgery.collect(network.losses(0), scaler=scaler)
    surgery.backward(network.losses(1), scaler=scaler)
    rows = oracle.added(*(oracle.separate(plain, lambda seed=seed: plain.losses(seed)) for seed in range(2)))
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method]), rows, factor=1024.0)
    network.zero_grad()
    for seed in range(2):
        surgery.collect(network.losses(seed), scaler=scaler)
    surgery.backward(scaler=scaler)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method]), rows, factor=1024.0)


def test_one_task_is_the_plain_scaled_backward_pass() -> None:
    network, plain = build("perceptron", torch.float32), build("perceptron", torch.float32)
    scaler = fixed(1000.0)
    aggregator().backward({"a": network.losses()["a"]}, scaler=scaler)
    scaler.scale(plain.losses()["a"]).backward()
    assert_same_gradients(network, plain)


def test_heads_get_exactly_their_own_scaled_gradients() -> None:
    network, plain = build("perceptron", torch.float32), build("perceptron", torch.float32)
    scaler = fixed(1000.0)
    aggregator().backward(network.losses(), scaler=scaler)
    for task in TASKS:
        plain.zero_grad()
        scaler.scale(plain.losses()[task]).backward()
        for p, q in zip(network.heads[task].parameters(), plain.heads[task].parameters(), strict=True):  # type: ignore[index]
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("tasks", [("a",), ("a", "b")], ids="-".join)
def test_gradients_that_only_the_scale_keeps_from_underflow(window: bool, tasks: tuple[str, ...]) -> None:
    """float16 parameters whose gradients are nothing without the factor: they are never divided by it in float16."""
    trunk, head = (nn.Parameter(torch.ones(3, dtype=torch.float16)) for _ in range(2))
    surgery, scaler = aggregator("sum"), fixed(2.0**16)
    losses = {task: (trunk.float() * 3e-9).sum() + (head.float() * 2e-9).sum() * (task == "a") for task in tasks}
    if window:
        surgery.collect(losses, scaler=scaler)
        surgery.backward(scaler=scaler)
    else:
        surgery.backward(losses, scaler=scaler)
    for p, expected in ((trunk, 3e-9 * len(tasks)), (head, 2e-9)):
        torch.testing.assert_close(p.grad, torch.full((3,), expected * 2.0**16, dtype=torch.float16), rtol=2e-3, atol=1e-7)


def test_a_scaler_that_is_switched_off() -> None:
    one, other = build("unet"), build("unet")
    aggregator().backward(one.losses(), scaler=GradScaler("cpu", enabled=False))
    aggregator().backward(other.losses())
    assert_same_gradients(one, other)


def test_the_loop_of_a_scaler() -> None:
    """scale, unscale, clip, step, update, as without the scaler."""
    scaled, plain = build("unet"), build("unet")
    scaler = fixed()
    for network, surgery, using in ((scaled, aggregator(), scaler), (plain, aggregator(), None)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            surgery.backward(network.losses(seed), scaler=using)
            if using is not None:
                using.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            if using is None:
                optimizer.step()
            else:
                using.step(optimizer)
                using.update()
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_gradients_that_overflow_make_the_scaler_skip_the_step() -> None:
    """The method's memory is as it was, and the next step with a smaller scale is right."""
    network, plain = build("unet", torch.float32), build("unet", torch.float32)
    surgery = aggregator("gradvac", order="ascending", beta=0.3)
    surgery.backward(network.losses(1))
    plain_surgery = aggregator("gradvac", order="ascending", beta=0.3)
    plain_surgery.backward(plain.losses(1))
    optimizer, scaler = (
        torch.optim.SGD(network.parameters(), lr=0.1),
        GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120),
    )
    before = [p.detach().clone() for p in network.parameters()]
    optimizer.zero_grad()
    surgery.backward({task: loss * 1e3 for task, loss in network.losses().items()}, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**7
    optimizer.zero_grad()
    surgery.backward(network.losses(), scaler=scaler)
    scaler.unscale_(optimizer)
    plain.zero_grad()
    plain_surgery.backward(plain.losses())
    for name, g in grads(plain).items():
        torch.testing.assert_close(network.get_parameter(name).grad, g, rtol=1e-5, atol=1e-6)


# --- total ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.25, 1024.0, -1.0, 3.0, 0.0])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_what_multiplies_the_total_multiplies_the_gradients(method: str, factor: float, options: dict[str, Any]) -> None:
    network, plain = build("unet"), build("unet")
    surgery = aggregator(method)
    (surgery.total(network.losses(), **options) * factor).backward()
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method]), rows, factor=factor)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS) * (factor != 0)  # 0 leaves nothing to decide on
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-13)


def test_a_scaler_on_the_total() -> None:
    network, plain = build("unet"), build("unet")
    scaler = fixed()
    for seed in range(2):  # two micro-batches, surgery on each
        scaler.scale(aggregator().total(network.losses(seed)) / 2).backward()
    rows = [oracle.separate(plain, lambda seed=seed: plain.losses(seed)) for seed in range(2)]
    each = [oracle.gradients(row, plain, ascending) for row in rows]
    assert_gradients(network, {name: each[0][name] + each[1][name] for name in each[0]}, oracle.added(*rows), factor=512.0)


@pytest.mark.parametrize("shared", [None, "trunk"])
def test_the_total_takes_what_backward_takes(shared: str | None) -> None:
    """Absent tasks, several batches, shared, inputs, gram_on, accumulate."""
    one, other = build("perceptron"), build("perceptron")
    for network in (one, other):
        for p in network.parameters():
            p.grad = torch.ones_like(p)

    def update(network: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        losses = {"a": [network.losses(0)["a"], network.losses(1)["a"]], "b": None, "c": network.losses(2)["c"]}
        inputs = [p for name, p in network.named_parameters() if name != "heads.c.bias"]
        given = network.trunk if shared else None
        return losses, {"shared": given, "inputs": inputs, "accumulate": False, "gram_on": network.trunk[2]}

    losses, options = update(one)
    total = aggregator().total(losses, **options)
    torch.testing.assert_close(total.detach(), sum(loss.detach() for loss in (*losses["a"], losses["c"])))
    total.backward()
    losses, options = update(other)
    aggregator().backward(losses, **options)
    assert_same_gradients(one, other)


def test_a_total_of_one_task() -> None:
    network, plain = build("perceptron", torch.float32), build("perceptron", torch.float32)
    surgery = aggregator()
    surgery.total({"a": network.losses()["a"]}).backward()
    plain.losses()["a"].backward()
    assert_same_gradients(network, plain)
    assert [sum(step.present) for step in surgery.history] == [1]


def test_a_total_beside_other_terms() -> None:
    """What is added to it is propagated as ever, and meets the surgery's gradients in .grad."""
    network, plain = build("perceptron"), build("perceptron")
    decay = 0.3 * network.trunk[0].weight.square().sum()  # type: ignore[index]
    (aggregator().total(network.losses()) + decay).backward()
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, ascending)
    expected["trunk.0.weight"] = expected["trunk.0.weight"] + 0.6 * plain.trunk[0].weight.detach()  # type: ignore[index]
    assert_gradients(network, expected, rows)


def test_a_total_whose_graph_is_kept() -> None:
    network, plain = build("unet"), build("unet")
    total = aggregator().total(network.losses(), retain_graph=True)
    total.backward(retain_graph=True)
    total.backward(retain_graph=True)
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows, factor=2.0)


def test_a_total_twice_without_its_graph() -> None:
    network = build("unet")
    total = aggregator().total(network.losses())
    total.backward()
    before = grads(network)
    with pytest.raises(RuntimeError):
        total.backward()
    for name, g in grads(network).items():
        assert torch.equal(g, before[name])
