"""``TaskGradients``: what every way of capturing yields and every method consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gradsurgery.ops.reference import empty_like_any

GradientLike: TypeAlias = Tensor | Sequence[Tensor | None] | None
"""One task's gradient: a tensor, a list with one entry a parameter (None where it has none), or None for an absent task."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DTYPE_NAMES = "float64, float32, bfloat16 or float16"


@dataclass(slots=True)
class TaskGradients:
    """The gradients of T tasks over P tensors, as the operators take them (see ``ops/schema.py``); never concatenated.

    Attributes:
        entries: task-major [T*P], None where a task has no gradient; or [P] tensors of shape [T, ...] when ``stacked``.
        tasks: T.
        stacked: which of the two.
        single: one task's gradient is a tensor rather than a list of P.
        copies: on how many ranks each position's values are, where every rank holds parts of reduced gradients; None: on one. [P]
    """

    entries: list[Tensor | None]
    tasks: int
    stacked: bool = False
    single: bool = False
    copies: Sequence[int] | None = None

    @property
    def pieces(self) -> int:
        """P, the number of tensors in one task's gradient."""
        return len(self.entries) if self.stacked else len(self.entries) // self.tasks

    @property
    def present(self) -> tuple[bool, ...]:
        """Which tasks have a gradient at all. [T]"""
        if self.stacked:
            return (True,) * self.tasks
        P = self.pieces
        return tuple(any(g is not None for g in self.entries[t * P : (t + 1) * P]) for t in range(self.tasks))

    @property
    def device(self) -> torch.device:
        """Where the gradients lie."""
        return next(g.device for g in self.entries if g is not None)

    def rows(self, piece: int) -> list[Tensor | None]:
        """The T tasks' gradients at one position; one tensor [T, ...] is taken apart without a copy. [T]"""
        whole = self.entries[piece]
        if self.stacked and whole is not None:
            return list(whole.unbind())
        return self.entries[piece :: self.pieces]

    def task_major(self) -> Sequence[Tensor | None]:
        """Entries task by task, whichever way the gradients came. [T*P]"""
        if not self.stacked:
            return self.entries
        rows = [self.rows(p) for p in range(self.pieces)]
        return [row[t] for t in range(self.tasks) for row in rows]

    def shape(self, piece: int) -> torch.Size | None:
        """Of one task's gradient at one position; None where no task has one."""
        return next((row.shape for row in self.rows(piece) if row is not None), None)

    def reached(self) -> list[int]:
        """The positions where some task has a gradient."""
        P = self.pieces
        return [p for p in range(P) if self.stacked or any(g is not None for g in self.entries[p::P])]

    def at(self, pieces: Sequence[int], tasks: Sequence[int | None]) -> TaskGradients:
        """The gradients at some positions, of tasks by their place here, in this order; None for a task that is not here."""
        rows = [self.rows(p) for p in pieces]
        copies = None if self.copies is None else [self.copies[p] for p in pieces]
        entries = [None if t is None else row[t] for t in tasks for row in rows]
        return TaskGradients(entries, len(tasks), single=self.single, copies=copies)

    def empty(self) -> list[Tensor]:
        """New tensors shaped and laid out like one task's gradient; without elements where no task has one. [P]"""
        if self.stacked:
            return [torch.empty_like(g[0]) for g in self.entries if g is not None]
        columns = [self.rows(p) for p in range(self.pieces)]
        return [
            torch.empty(0, device=self.device) if all(g is None for g in column) else empty_like_any(column) for column in columns
        ]

    @classmethod
    def of(cls, grads: Tensor | Sequence[GradientLike], name: str = "grads") -> TaskGradients:
        """Checks and normalises what a caller passes as ``grads``.

        Args:
            grads: a tensor [T, ...], or a sequence with one entry a task: a tensor, a list of P tensors or Nones, or None.
            name: of the caller's argument, for errors.

        Raises:
            TypeError: an entry is no tensor, or its dtype is not a supported floating type.
            ValueError: no task, no gradient at all, or shapes, layouts or devices that do not fit together.
        """
        if isinstance(grads, Tensor):
            check_matrix(grads, name)
            return cls([grads], grads.shape[0], stacked=True, single=True)
        rows, single = _rows(grads, name)
        result = cls([g for row in rows for g in row], len(rows), single=single)
        _check_consistent(result, name)
        return result


def check_matrix(grads: Tensor, name: str = "grads") -> None:
    """Raises unless ``grads`` is a floating tensor [T, ...] with T >= 1."""
    if grads.dim() < 2:
        raise ValueError(
            f"{name}: expected a [T, N] tensor or one entry a task, found a tensor of shape {list(grads.shape)}. "
            "For a single task pass [gradient]."
        )
    if grads.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one task, found a tensor with T=0.")
    if grads.dtype not in DTYPES or grads.layout is not torch.strided:
        _check_tensor(grads, name)


def _rows(grads: Sequence[GradientLike], name: str) -> tuple[list[Sequence[Tensor | None]], bool]:
    """[T][P], and whether entries were single tensors."""
    if not isinstance(grads, Sequence):
        raise TypeError(f"{name}: expected a [T, N] tensor or a sequence with one entry a task, found {type(grads).__name__}.")
    if not grads:
        raise ValueError(f"{name}: expected at least one task, found none (T=0).")
    lists = [g for g in grads if g is not None and not isinstance(g, Tensor)]
    for t, g in enumerate(grads):
        if g is not None and not isinstance(g, (Tensor, Sequence)):
            raise TypeError(f"{name}[{t}]: expected a tensor, a list of tensors or None, found {type(g).__name__}.")
    if lists and any(isinstance(g, Tensor) for g in grads):
        raise TypeError(f"{name}: some tasks are given as tensors and some as lists of tensors; give all in one form.")
    if not lists:
        return [[g] for g in grads], True  # type: ignore[list-item]  # only tensors and None are left
    lengths = {len(g) for g in lists}
    if len(lengths) > 1 or 0 in lengths:
        found = [0 if g is None else len(g) for g in grads]
        raise ValueError(f"{name}: every task must list the same, at least one, tensors; found {found} entries.")
    P = lengths.pop()
    return [[None] * P if g is None else g for g in grads], False  # type: ignore[misc]


def _check_tensor(g: Tensor, name: str) -> None:
    if g.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, found layout {g.layout}; call .to_dense() first.")
    if g.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype {_DTYPE_NAMES}, found {g.dtype}.")


def _check_consistent(grads: TaskGradients, given: str) -> None:
    P = grads.pieces
    device: torch.device | None = None
    for p in range(P):
        shape: torch.Size | None = None
        for t in range(grads.tasks):
            g = grads.entries[t * P + p]
            if g is None:
                continue
            name = f"{given}[{t}]" if grads.single else f"{given}[{t}][{p}]"
            if not isinstance(g, Tensor):
                raise TypeError(f"{name}: expected a tensor or None, found {type(g).__name__}.")
            _check_tensor(g, name)
            if shape is None:
                shape = g.shape
            elif g.shape != shape:
                raise ValueError(f"{name}: expected shape {list(shape)} like the tasks before it, found {list(g.shape)}.")
            if device is None:
                device = g.device
            elif g.device != device:
                raise ValueError(f"{name}: expected device {device} like the gradients before it, found {g.device}.")
    if device is None:
        raise ValueError(f"{given}: expected a gradient of at least one task, found only None.")


def check_against(others: TaskGradients, given: TaskGradients) -> None:
    """Raises unless ``against`` has the tensors of ``grads``."""
    P, rows = given.pieces, given.task_major()
    if others.pieces != P:
        raise ValueError(f"against: expected {P} tensors a task like grads, found {others.pieces}.")
    if others.device != given.device:
        raise ValueError(f"against: expected device {given.device} like grads, found {others.device}.")
    for k, other in enumerate(others.task_major()):
        like = next((g for g in rows[k % P :: P] if g is not None), None)
        if other is not None and like is not None and other.shape != like.shape:
            name = f"against[{k // P}]" if others.single else f"against[{k // P}][{k % P}]"
            raise ValueError(f"{name}: expected shape {list(like.shape)} like grads, found {list(other.shape)}.")
