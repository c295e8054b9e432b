"""Autograd hands one tensor to several parameters, expanded tensors, views, and buffers of others; no .grad shares memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES
from parameters.comparison import aggregator, assert_gradients
from parameters.models import TASKS
from torch import Tensor, nn


class Bag(nn.Module):
    """Parameters p and q [2, 3] that tasks share, r and s [2, 3] that the first task has for itself, and constants."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for name in "pqrs":
            values = torch.randn(2, 3, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))
        self.constants = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in TASKS]


class _Handing(torch.autograd.Function):
    """The sum of x * buffer, whose gradient is the buffer itself, rather than a copy, where that is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, buffer: Tensor) -> Tensor:
        ctx.buffer = buffer
        return (x * buffer).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.buffer if float(grad) == 1 else ctx.buffer * grad, None


def added(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return ((a + b) * c).sum()


def added_and_expanded(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a + b).sum() * c.mean()


def expanded(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a.sum() * c[0, 0] + b.sum() * c[1, 0]


def summed(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a.sum() + b.sum() - 3 * (a[:1] * c[:1]).sum() * 0


def concatenated(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (torch.cat([a, b]) * torch.cat([c, -c])).sum()


def stacked(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (torch.stack([a, b, a]) * torch.stack([c, 2 * c, c.flip(0)])).sum()


def interleaved(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Views with gaps between their elements."""
    return (torch.stack([a, b], -1) * torch.stack([c, -2 * c], -1)).sum()


def transposed(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.T @ c @ b.T).tanh().sum()


def handed(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _Handing.apply(a, c) + _Handing.apply(b, c)  # type: ignore[no-any-return]


def flattened(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.dot(a.view(-1), c.view(-1)) - torch.dot(b.flatten(), c.reshape(-1))


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    way.__name__: way
    for way in (
        *(added, added_and_expanded, expanded, summed, concatenated),
        *(stacked, interleaved, transposed, handed, flattened),
    )
}


def losses(bag: Bag, way: str) -> dict[str, Tensor]:
    """All tasks reach p and q in this way, and the first task r and s."""
    run = WAYS[way]
    result = {task: run(bag.p, bag.q, c) for task, c in zip(TASKS, bag.constants, strict=True)}
    result["a"] = result["a"] + run(bag.r, bag.s, bag.constants[0])
    return result


def assert_apart(bag: Bag) -> None:
    """Every .grad has memory of its own, element by element, and nothing else lies there."""
    tensors = [*(p.grad for p in bag.parameters() if p.grad is not None), *bag.parameters(), *bag.constants]
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(storages)) == len(storages)
    before = [tensor.detach().clone() for tensor in tensors]
    for k, p in enumerate(p for p in bag.parameters() if p.grad is not None):
        p.grad.add_(1.0)  # type: ignore[union-attr]
        before[k] += 1.0
        for tensor, expected in zip(tensors, before, strict=True):
            assert torch.equal(tensor.detach(), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["pcgrad", "sum", "upgrad"])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"accumulate": False}], ids=["full", "low", "replacing"])
def test_shared_parameters(way: str, method: str, options: dict[str, Any]) -> None:
    bag, plain = Bag(), Bag()
    aggregator(method).backward(losses(bag, way), **options)
    rows = oracle.separate(plain, lambda: losses(plain, way))
    assert_gradients(bag, oracle.gradients(rows, plain, ORACLES[method]), rows)
    assert_apart(bag)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "handed"])
def test_in_one_batched_pass(way: str) -> None:
    """The tasks part at a number that they all read; ``handed`` is no function that torch can batch."""
    bag, plain = Bag(), Bag()

    def forward(net: Bag) -> dict[str, Tensor]:
        z = WAYS[way](net.p, net.q, net.constants[0]).tanh()
        return {"a": (z * net.r).square().sum(), "b": -3 * z, "c": (z * net.s).sum()}

    aggregator().backward(forward(bag), passes="batched")
    rows = oracle.separate(plain, lambda: forward(plain))
    assert_gradients(bag, oracle.gradients(rows, plain, ORACLES["pcgrad"]), rows)
    assert_apart(bag)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_shared(way: str) -> None:
    """All get plain sums, but for one that is shared with another."""
    bag, plain = Bag(), Bag()
    aggregator().backward(losses(bag, way), shared=[bag.p])
    rows = oracle.separate(plain, lambda: losses(plain, way))
    assert_gradients(bag, oracle.gradients(rows, plain, ORACLES["pcgrad"], shared=["p"]), rows)
    assert_apart(bag)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [True, False])
def test_one_task(way: str, accumulate: bool) -> None:
    bag, plain = Bag(), Bag()
    aggregator().backward({"a": losses(bag, way)["a"]}, accumulate=accumulate)
    losses(plain, way)["a"].backward()
    for p, q in zip(bag.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
    if not accumulate:  # else it is torch's own pass, which gives parameters the parts of one tensor
        assert_apart(bag)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tasks", [TASKS, ("a",)], ids=["all", "one"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_windows(way: str, tasks: tuple[str, ...], scale: float) -> None:
    """Sums and multiples of gradients are made in memory of their own, not in what autograd handed out."""
    bag, plain = Bag(), Bag()
    surgery = aggregator()
    scaler = None if scale == 1 else torch.amp.GradScaler("cpu", init_scale=scale)
    for _ in range(2):
        surgery.collect({task: loss for task, loss in losses(bag, way).items() if task in tasks}, scaler=scaler)
    surgery.backward(scaler=scaler)
    once = oracle.separate(plain, lambda: {task: loss for task, loss in losses(plain, way).items() if task in tasks})
    rows = oracle.added(once, once)
    assert_gradients(bag, oracle.gradients(rows, plain, ORACLES["pcgrad"]), rows, factor=scale)
    assert_apart(bag)
    assert torch.equal(torch.stack(bag.constants), torch.stack(Bag().constants))


class _Static(torch.autograd.Function):
    """The sum of x * c, whose backward passes all write into one buffer, as those of captured CUDA graphs do."""

    buffer = torch.zeros(2, 3, dtype=torch.float64)

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor) -> Tensor:
        ctx.c = c
        return (x * c).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Static.buffer.copy_(grad * ctx.c), None


@pytest.mark.parametrize("window", [False, True], ids=["full", "window"])
def test_backward_passes_that_write_into_one_buffer(window: bool) -> None:
    """What a task's pass returned is gone after the next one; .grad of separate passes would hold a copy.

    Not with memory="low", whose weighted pass goes through all tasks at once: torch's backward of the sum is wrong there, too.
    """
    bag, plain = Bag(), Bag()

    def forward(net: Bag) -> dict[str, Tensor]:
        return {task: _Static.apply(net.p, c) + (net.q * c).sum() for task, c in zip(TASKS, net.constants, strict=True)}

    surgery = aggregator()
    if window:
        surgery.collect(forward(bag))
    surgery.backward(forward(bag))
    once = oracle.separate(plain, lambda: forward(plain))
    rows = oracle.added(once, once) if window else once
    assert_gradients(bag, oracle.gradients(rows, plain, ORACLES["pcgrad"]), rows)
    assert all(p.grad is None or p.grad.data_ptr() != _Static.buffer.data_ptr() for p in bag.parameters())


def test_a_collected_gradient_is_a_copy_of_what_is_handed_out() -> None:
    """A buffer that a backward pass returned is written to before the window ends."""
    bag = Bag()
    surgery = aggregator("sum")
    surgery.collect(losses(bag, "handed"))
    expected = torch.stack(bag.constants).sum(0)
    for constant in bag.constants:
        constant.zero_()
    surgery.backward()
    torch.testing.assert_close(bag.p.grad, expected, rtol=1e-14, atol=1e-14)
