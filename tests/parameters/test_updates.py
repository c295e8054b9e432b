"""What one update is made of: separate graphs, several batches, accumulation, windows of micro-batches, a graph used twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from parameters.comparison import aggregator, ascending, assert_gradients, assert_same_gradients, grads
from parameters.models import TASKS, Network, build

KINDS = ["perceptron", "tied", "overlapping-heads", "convolutions"]


def separate(plain: Network, *seeds: int, tasks: Sequence[str] = TASKS) -> oracle.Rows:
    """Per-task gradients, added up over the batches."""
    return oracle.added(*(oracle.separate(plain, lambda seed=seed: {t: plain.losses(seed)[t] for t in tasks}) for seed in seeds))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
def test_every_task_has_a_batch_of_its_own(kind: str, options: dict[str, Any]) -> None:
    network, plain = build(kind), build(kind)
    aggregator().backward({task: network.losses(seed)[task] for seed, task in enumerate(TASKS)}, **options)
    rows = oracle.separate(plain, lambda: {task: plain.losses(seed)[task] for seed, task in enumerate(TASKS)})
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
def test_a_task_several_times_in_one_update(kind: str, options: dict[str, Any]) -> None:
    """Batches of their own, or two losses of one graph: a task's gradient is the sum."""
    network, plain = build(kind), build(kind)

    def losses(net: Network) -> dict[str, Any]:
        one, two = net.losses(0), net.losses(1)
        return {"a": [one["a"], two["a"]], "b": [one["b"] * 2, two["b"], one["b"].square()], "c": one["c"]}

    aggregator().backward(losses(network), **options)
    rows = oracle.separate(plain, lambda: losses(plain))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_one_task_in_several_batches_is_plain_backward_passes() -> None:
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    surgery.backward({"b": [network.losses(0)["b"], network.losses(1)["b"]]})
    for seed in range(2):
        plain.losses(seed)["b"].backward()
    expected = grads(plain)
    assert grads(network).keys() == expected.keys()
    for name, g in grads(network).items():
        torch.testing.assert_close(g, expected[name], rtol=1e-14, atol=1e-16)
    assert [sum(step.present) for step in surgery.history] == [1]


# --- accumulation -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_adds_to_the_gradients_that_are_there(kind: str) -> None:
    """In place, as backward() does: whoever holds .grad (a bucket, a flat buffer) sees the sum."""
    network, plain = build(kind), build(kind)
    surgery = aggregator()
    surgery.backward(network.losses(0))
    held = {name: p.grad for name, p in network.named_parameters()}
    surgery.backward(network.losses(1))
    rows = [separate(plain, 0), separate(plain, 1)]
    each = [oracle.gradients(row, plain, ascending) for row in rows]
    assert_gradients(network, {name: each[0][name] + each[1][name] for name in each[0]}, oracle.added(*rows))
    assert all(p.grad is held[name] for name, p in network.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_replaces_the_gradients_of_what_is_reached(kind: str) -> None:
    network, plain = build(kind), build(kind)
    network.register_parameter("nobody", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    aggregator().backward({t: network.losses(0)[t] for t in ("a", "b")}, accumulate=False)
    rows = separate(plain, 0, tasks=("a", "b"))
    expected = oracle.gradients(rows, plain, ascending)
    kept = {name: torch.full_like(p, 7.0) for name, p in network.named_parameters() if name not in expected}
    assert kept.keys() >= {"nobody"}
    assert_gradients(network, expected | kept, rows)


def test_one_task_replaces_too() -> None:
    network, plain = build("perceptron"), build("perceptron")
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    aggregator().backward({"a": network.losses()["a"]}, accumulate=False)
    plain.losses()["a"].backward()
    for (name, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, torch.full_like(p, 7.0) if q.grad is None else q.grad), name


def test_adds_into_a_flat_buffer() -> None:
    """Gradients that are views of one buffer, with gaps or none, as parallel wrappers lay them."""
    network, plain = build("unet"), build("unet")
    flat = torch.ones(sum(p.numel() + 1 for p in network.parameters()), dtype=torch.float64)
    start, views = 0, {}
    for name, p in network.named_parameters():
        views[name] = flat[start : start + p.numel()].view_as(p)
        p.grad = views[name]
        start += p.numel() + 1
    aggregator().backward(network.losses())
    rows = separate(plain, 0)
    expected = {name: g + 1 for name, g in oracle.gradients(rows, plain, ascending).items()}
    assert_gradients(network, expected, rows)
    assert all(p.grad is views[name] for name, p in network.named_parameters())
    for name, view in views.items():
        torch.testing.assert_close(view, expected[name], rtol=1e-10, atol=1e-12)
    gaps = torch.ones_like(flat).bool()
    for name, p in network.named_parameters():
        offset = views[name].storage_offset()
        gaps[offset : offset + p.numel()] = False
    assert torch.equal(flat[gaps], torch.ones(int(gaps.sum()), dtype=torch.float64))


def test_adds_to_gradients_in_another_layout() -> None:
    network, plain = build("unet"), build("unet")
    for p in network.parameters():
        p.grad = torch.ones(p.shape[::-1], dtype=p.dtype).permute(*range(p.dim() - 1, -1, -1))
    aggregator().backward(network.losses())
    rows = separate(plain, 0)
    assert_gradients(network, {name: g + 1 for name, g in oracle.gradients(rows, plain, ascending).items()}, rows)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_losses_of_one_element(shape: tuple[int, ...]) -> None:
    network, plain = build("tied"), build("tied")
    aggregator().backward({task: loss.reshape(shape) for task, loss in network.losses().items()})
    rows = separate(plain, 0)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


# --- windows ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", ["with losses", "alone"])
def test_surgery_on_gradients_of_several_batches(kind: str, last: str) -> None:
    """Exact on what was accumulated: the sums are operated on, and nothing is written before."""
    network, plain = build(kind), build(kind)
    surgery = aggregator()
    for seed in range(2):
        surgery.collect(network.losses(seed))
        assert not grads(network)
        assert not surgery.history
    if last == "alone":
        surgery.collect(network.losses(2))
        surgery.backward()
    else:
        surgery.backward(network.losses(2))
    rows = separate(plain, 0, 1, 2)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
    assert len(surgery.history) == 1
    network.zero_grad()
    surgery.backward(network.losses(3))  # the window is over
    rows = separate(plain, 3)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_the_window_differs_from_surgery_by_batch() -> None:
    """What the test above compares is no sum of surgeries."""
    plain = build("tied")
    whole = oracle.gradients(separate(plain, 0, 1, 2), plain, ascending)
    each = [oracle.gradients(separate(plain, seed), plain, ascending) for seed in range(3)]
    assert any(not torch.allclose(g, sum(e[name] for e in each), rtol=1e-6) for name, g in whole.items())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", ["with losses", "alone"])
def test_micro_batches_of_one_task_each(kind: str, last: str) -> None:
    """No micro-batch alone has two tasks; the update has three."""
    network, plain = build(kind), build(kind)
    surgery = aggregator()
    surgery.collect({"b": network.losses(0)["b"]})
    surgery.collect({"a": network.losses(1)["a"]})
    if last == "alone":
        surgery.collect({"c": network.losses(2)["c"]})
        surgery.backward()
    else:
        surgery.backward({"c": network.losses(2)["c"]})
    rows = oracle.separate(plain, lambda: {t: plain.losses(seed)[t] for t, seed in (("a", 1), ("b", 0), ("c", 2))})
    assert_gradients(network, oracle.gradients(rows, plain, ascending, tasks=TASKS), rows)
    assert surgery.statistics().present == (True,) * 3


def test_a_window_of_one_task_is_a_plain_backward_pass() -> None:
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    for seed in range(2):
        surgery.collect({"a": network.losses(seed)["a"]})
    surgery.backward()
    expected = separate(plain, 0, 1, tasks=("a",))["a"]
    assert grads(network).keys() == expected.keys()
    for name, g in grads(network).items():
        torch.testing.assert_close(g, expected[name], rtol=1e-14, atol=1e-16)
    assert [sum(step.present) for step in surgery.history] == [1]


def test_a_window_adds_to_or_replaces_what_was_there() -> None:
    plain = build("perceptron")
    rows = separate(plain, 0, 1)
    expected = oracle.gradients(rows, plain, ascending)
    for accumulate in (True, False):
        network = build("perceptron")
        for p in network.parameters():
            p.grad = torch.full_like(p, 7.0)
        surgery = aggregator()
        surgery.collect(network.losses(0))
        surgery.backward(network.losses(1), accumulate=accumulate)
        assert_gradients(network, {name: g + 7.0 * accumulate for name, g in expected.items()}, rows)


def test_a_window_can_be_given_up() -> None:
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    surgery.collect(network.losses(0))
    surgery.reset()
    surgery.backward(network.losses(1))
    rows = separate(plain, 1)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_what_was_collected_does_not_change_with_the_parameters() -> None:
    """Nor with what the caller does to .grad in between."""
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    surgery.collect(network.losses(0))
    network.zero_grad(set_to_none=False)
    surgery.backward()
    rows = separate(plain, 0)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


# --- a graph that is used again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["perceptron", "tied", "checkpointed", "unet"])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
def test_a_graph_that_is_kept_can_be_used_twice(kind: str, options: dict[str, Any]) -> None:
    network, plain = build(kind), build(kind)
    surgery, losses = aggregator(), network.losses()
    surgery.backward(losses, retain_graph=True, **options)
    surgery.backward(losses, retain_graph=True, **options)
    rows = separate(plain, 0)
    expected = oracle.gradients(rows, plain, ascending)
    assert_gradients(network, expected, rows, factor=2.0)
    network.zero_grad()
    torch.stack(list(losses.values())).sum().backward()  # and once more by torch itself
    for name, g in oracle.gradients(rows, plain, lambda G: G.sum(0)).items():
        torch.testing.assert_close(network.get_parameter(name).grad, g, rtol=1e-10, atol=1e-12)


def test_a_graph_that_is_collected_from_can_be_kept() -> None:
    network, plain = build("tied"), build("tied")
    surgery, losses = aggregator(), network.losses()
    surgery.collect(losses, retain_graph=True)
    surgery.backward(losses)
    rows = separate(plain, 0, 0)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_a_graph_is_let_go_unless_it_is_kept() -> None:
    """The saved activations are freed as by backward()."""
    network = build("tied")
    losses = network.losses()
    aggregator().backward(losses)
    for loss in losses.values():
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward(retain_graph=True)


def test_the_same_update_twice_gives_the_same_bits() -> None:
    one, other = build("unet", torch.float32), build("unet", torch.float32)
    for network in (one, other):
        aggregator("cagrad").backward(network.losses())
    assert_same_gradients(one, other)
