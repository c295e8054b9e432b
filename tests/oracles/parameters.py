"""Surgery in parameter space as the papers run it: T forward and T backward passes of their own, full vectors in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

Losses: TypeAlias = Mapping[str, Tensor | Sequence[Tensor] | None]
Rows: TypeAlias = dict[str, dict[str, Tensor]]
"""task -> parameter's name -> gradient, dense; what a task does not reach is not there."""
Surgery: TypeAlias = Callable[[Tensor], Tensor]
"""G [T, N] float64 -> the combined gradient [N]."""


def separate(network: nn.Module, forward: Callable[[], Losses]) -> Rows:
    """Every task's gradients, from a forward and a plain backward pass of its own; .grad is empty before and after each.

    Args:
        network: whose parameters are looked at.
        forward: one forward pass of it, the same each time: the losses, several for a task that has several batches.
    """
    rows: Rows = {}
    for task in forward():
        network.zero_grad(set_to_none=True)
        given = forward()[task]
        for loss in [] if given is None else [given] if isinstance(given, Tensor) else given:
            loss.backward(retain_graph=True)  # two losses of a task may come from one graph
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        if found:
            rows[task] = {name: g.to_dense() if g.is_sparse else g for name, g in found.items()}
        network.zero_grad(set_to_none=True)
    return rows


def added(*windows: Rows) -> Rows:
    """The gradients of several batches, added up task by task."""
    total: Rows = {}
    for rows in windows:
        for task, row in rows.items():
            held = total.setdefault(task, {})
            for name, g in row.items():
                held[name] = held[name] + g if name in held else g
    return total


def shared_names(rows: Rows, network: nn.Module) -> list[str]:
    """The parameters that two or more tasks reach."""
    return [name for name, _ in network.named_parameters() if sum(name in row for row in rows.values()) > 1]


def matrix(rows: Rows, names: Sequence[str], tasks: Sequence[str]) -> Tensor:
    """G: one row a task, zeros where it does not reach; an absent task's row is zero. [T, N] float64"""
    likes = {name: next(row[name] for row in rows.values() if name in row) for name in names}
    missing = {name: torch.zeros_like(g) for name, g in likes.items()}
    return torch.stack([torch.cat([rows.get(t, {}).get(name, missing[name]).double().flatten() for name in names]) for t in tasks])


def gradients(
    rows: Rows, network: nn.Module, surgery: Surgery, shared: Collection[str] | None = None, tasks: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """What every parameter's .grad has to be; what no task reaches is not there.

    Args:
        rows: as ``separate`` gives them.
        network: whose parameters they are.
        surgery: on the flat gradients.
        shared: the shared parameters' names; None: those that two or more tasks reach.
        tasks: the order of G's rows; absent tasks that are named here have rows of zeros. None: the tasks of ``rows``.
    """
    order = [name for name, _ in network.named_parameters()]
    chosen = shared_names(rows, network) if shared is None else [name for name in order if name in shared]
    reached = [name for name in chosen if any(name in row for row in rows.values())]
    result = {
        name: torch.stack([row[name] for row in rows.values() if name in row]).sum(0)
        for name in order
        if any(name in row for row in rows.values())
    }
    if len(rows) > 1 and reached:
        combined = surgery(matrix(rows, reached, list(rows) if tasks is None else tasks))
        parts = combined.split([result[name].numel() for name in reached])
        result |= {name: part.reshape(result[name].shape) for name, part in zip(reached, parts, strict=True)}
    return result


def conflicts(rows: Rows, network: nn.Module, shared: Collection[str] | None = None) -> int:
    """The number of pairs of tasks whose gradients of the shared parameters conflict."""
    G = matrix(rows, shared_names(rows, network) if shared is None else list(shared), list(rows))
    return int(((G @ G.T).triu(1) < 0).sum())
