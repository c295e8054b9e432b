"""Updates of a network by form C, and the comparison of its .grad with the oracle's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from oracles.parameters import Rows
from oracles.pcgrad import pcgrad
from parameters.models import TASKS
from tolerances import TOLERANCES
from torch import Tensor, nn

import gradsurgery as gs


def aggregator(method: str = "pcgrad", **options: Any) -> gs.GradientAggregator:
    """Of the zoo's three tasks; PCGrad in ascending order unless told otherwise."""
    if method == "pcgrad" and "order" not in options:
        options["order"] = "ascending"
    return gs.GradientAggregator(method, **({"tasks": TASKS} | options))


def ascending(G: Tensor) -> Tensor:
    """The oracle of ``aggregator()``."""
    return pcgrad(G, "ascending")


def dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def grads(network: nn.Module) -> dict[str, Tensor]:
    """Copies of every .grad that there is."""
    return {name: dense(p.grad).clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_gradients(network: nn.Module, expected: Mapping[str, Tensor], rows: Rows, factor: float = 1.0) -> None:
    """Every .grad is ``factor`` times what the oracle gives, and None where no task reaches.

    Apart at most by the rounding to the parameters' dtype, and by 1e-11 (the rounding of K, which the weights carry) of the largest
    of the tasks' gradients.
    """
    lengths = [float(torch.cat([g.double().flatten() for g in row.values()]).norm()) for row in rows.values()]
    scale = max([*lengths, *(float(g.abs().max()) for g in expected.values())])
    for name, p in network.named_parameters():
        assert (p.grad is None) == (name not in expected), f"{name}: .grad is {'None' if p.grad is None else 'there'}"
        if p.grad is None:
            continue
        assert p.grad.dtype == p.dtype, name
        wanted = factor * expected[name].double()
        allowed = 4 * TOLERANCES[p.dtype].rounding * float(wanted.abs().max()) + 1e-11 * abs(factor) * scale
        error = float((dense(p.grad).double() - wanted).abs().max())
        assert error <= allowed, f"{name}: apart by {error:.3e}, allowed {allowed:.3e}"


def assert_same_gradients(one: nn.Module, other: nn.Module) -> None:
    """Two networks have the same .grad, to the bit."""
    first, second = grads(one), grads(other)
    assert first.keys() == second.keys()
    for name, g in first.items():
        assert torch.equal(g, second[name]), name


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Inside, no .grad changes: neither a bit of it nor the tensor that it is. Every other parameter is given one before."""
    for k, p in enumerate(network.parameters()):
        p.grad = None if k % 2 else torch.full_like(p, k + 0.5)
    before = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in network.named_parameters()}
    yield
    for name, p in network.named_parameters():
        held, copy = before[name]
        assert p.grad is held, f"{name}: another .grad"
        if held is not None and copy is not None:
            assert torch.equal(held, copy), f"{name}: .grad was written to"
        p.grad = None
