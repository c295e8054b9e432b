"""A small network of a trunk and two heads, and its step by hand: explicit surgery on full vectors in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from oracles.pcgrad import pcgrad
from torch import Tensor, nn

TASKS = ("seg", "depth")


class Network(nn.Module):
    """trunk [6 -> 8], heads [8 -> 3] of opposite sign: what brings one task nearer to a target takes the other away from it."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.trunk = nn.Sequential(nn.Linear(6, 8, dtype=dtype), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 3, dtype=dtype) for task in TASKS})
        with torch.no_grad():
            self.heads["depth"].weight.copy_(-self.heads["seg"].weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


def batch(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(number)
    return torch.randn(5, 6, generator=g, dtype=dtype), torch.randn(5, 3, generator=g, dtype=dtype)


def losses(outputs: Mapping[str, Tensor], y: Tensor, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    each = {"seg": lambda z: 3 * (z - y).square().mean(), "depth": lambda z: (z - 2 * y).square().mean()}
    return {task: each[task](outputs[task]) for task in tasks}


def by_hand(
    net: nn.Module, trunk: nn.Module, steps: Sequence[Mapping[str, Tensor]], reduction: str = "sum"
) -> dict[str, Tensor | None]:
    """The gradients by parameter after surgery on the sums of each task's gradients over micro-batches, in ascending order.

    Args:
        net: all parameters; what is not the trunk's is a head's, and gets the sum.
        steps: the losses of each micro-batch.
    """
    named = dict(net.named_parameters())
    rows: dict[str, list[Tensor | None]] = {}
    for step in steps:
        for task, loss in step.items():
            grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
            rows[task] = [_plus(a, b) for a, b in zip(rows.get(task, [None] * len(grads)), grads, strict=True)]
    shared = {id(p) for p in trunk.parameters()}
    places = [i for i, p in enumerate(named.values()) if id(p) in shared]
    matrix = torch.stack([torch.cat([row[i].reshape(-1).double() for i in places]) for row in rows.values()])
    parts = pcgrad(matrix, reduction=reduction).split([list(named.values())[i].numel() for i in places])
    result: list[Tensor | None] = [None] * len(named)
    for row in rows.values():
        result = [_plus(a, b) for a, b in zip(result, row, strict=True)]
    for i, part in zip(places, parts, strict=True):
        result[i] = part.reshape(list(named.values())[i].shape)
    return dict(zip(named, result, strict=True))


def conflict(steps: Sequence[Mapping[str, Tensor]], trunk: nn.Module) -> bool:
    """Whether the two tasks' summed gradients conflict in the trunk, so that surgery is not the sum."""
    totals = [torch.stack([step[task] for step in steps if task in step]).sum() for task in TASKS]
    a, b = (torch.cat([g.reshape(-1) for g in torch.autograd.grad(t, list(trunk.parameters()), retain_graph=True)]) for t in totals)
    return bool(a @ b < 0)


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def assert_gradients(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], rtol: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        found = actual[name]
        assert (found is None) == (right is None), name
        if found is not None and right is not None:
            bound = rtol * float(right.abs().max())
            torch.testing.assert_close(found.double(), right.double(), rtol=rtol, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_parameters(one: nn.Module, other: nn.Module, rtol: float = 0.0) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
