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
    """

    entries: list[Tensor | None]
    tasks: int
    stacked: bool = False
    single: bool = False

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

    def empty(self) -> list[Tensor]:
        """New tensors shaped and laid out like one task's gradient. [P]"""
        P = self.pieces
        if self.stacked:
            return [torch.empty_like(g[0]) for g in self.entries if g is not None]
        return [empty_like_any(self.entries[p::P]) for p in range(P)]

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
