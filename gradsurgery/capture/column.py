"""One parameter's gradients of T tasks, as surgery takes them, and where it writes their combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parameters import target_for


@dataclass
class Column:
    """The gradients of T tasks at one parameter.

    Sparse ones, of an embedding, are taken as the dense rows [R, ...] that some task touches, and their combination is sparse
    again. Where one of several is dense, all become so. Finding the rows waits for a CUDA device, as coalescing does.

    Attributes:
        leaf: the parameter.
        rows: its gradients; None of a task that does not reach it. [T]
        target: where to write their combination: over one of them, where nobody else sees its memory.
        touched: the places of the rows [R], where the gradients are sparse.
    """

    leaf: Tensor
    rows: list[Tensor | None]
    target: Tensor
    touched: Tensor | None = None

    @classmethod
    def of(cls, leaf: Tensor, held: Mapping[Any, Tensor], tasks: Sequence[Any]) -> Column:
        """From the gradients of those tasks that reach the parameter. [T]"""
        if not any(g.is_sparse for g in held.values()):
            target = target_for(held, leaf)  # first, as whoever knows the gradients counts
            return cls(leaf, [held.get(t) for t in tasks], target)
        rows, touched = _compact([held.get(t) for t in tasks])
        return cls(leaf, rows, torch.empty_like(next(g for g in rows if g is not None)), touched)

    @property
    def combined(self) -> Tensor:
        """What stands in ``target``, in the parameter's shape."""
        if self.touched is None:
            return self.target
        shape = self.leaf.shape
        return torch.sparse_coo_tensor(self.touched[None], self.target, shape, is_coalesced=True, check_invariants=False)


def entries(columns: Sequence[Column], tasks: int) -> list[Tensor | None]:
    """The gradients at several parameters, task by task. [T*P]"""
    return [column.rows[t] for t in range(tasks) for column in columns]


def _compact(gradients: Sequence[Tensor | None]) -> tuple[list[Tensor | None], Tensor | None]:
    """The rows that any of them touches [T] of [R, ...], and their places [R]; None where one is dense and all are made so."""
    if not all(g is None or (g.is_sparse and g.sparse_dim() == 1) for g in gradients):
        return [g.to_dense() if g is not None and g.is_sparse else g for g in gradients], None
    single = [None if g is None else g.coalesce() for g in gradients]
    places = torch.cat([g.indices()[0] for g in single if g is not None]).unique()
    return [None if g is None else _rows(g, places) for g in single], places


def _rows(gradient: Tensor, places: Tensor) -> Tensor:
    values = gradient.values()
    rows = values.new_zeros(len(places), *values.shape[1:])
    return rows.index_copy_(0, torch.searchsorted(places, gradient.indices()[0]), values)
