"""Batches of gradients, and what is right for them: the operators' reference, or an algorithm, on one sample after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ops.samples import Make, Sample
from oracles.pcgrad import pcgrad
from torch import Tensor


def _features(make: Make, tasks: int, batch: int) -> Sample:
    return Sample([make(batch, 37) for _ in range(tasks)], tasks)


def _stacked(make: Make, tasks: int, batch: int) -> Sample:
    return Sample([make(tasks, batch, 5, 3), make(tasks, batch)], tasks, stacked=True)


def _pyramid(make: Make, tasks: int, batch: int) -> Sample:
    """Three positions, the second of which lacks tasks, and the third of which is empty."""
    grads: list[Tensor | None] = []
    for t in range(tasks):
        grads += [make(batch, 4, 3), None if t % 2 else make(batch, 65), make(batch, 0)]
    return Sample(grads, tasks)


def _absent(make: Make, tasks: int, batch: int) -> Sample:
    return Sample([make(batch, 9) if t != 1 or tasks == 1 else None for t in range(tasks)], tasks)


def _channels_last(make: Make, tasks: int, batch: int) -> Sample:
    return Sample([make(batch, 5, 4, 3).contiguous(memory_format=torch.channels_last) for _ in range(tasks)], tasks)


def _layouts_differ(make: Make, tasks: int, batch: int) -> Sample:
    forms: list[Callable[[], Tensor]] = [
        lambda: make(batch, 5, 4, 3),
        lambda: make(batch, 5, 4, 3).contiguous(memory_format=torch.channels_last),
        lambda: make(3, 4, 5, batch).permute(3, 2, 1, 0),
        lambda: make(batch, 5, 4, 9)[..., ::3],
        lambda: make(1, 1, 1, 3).expand(batch, 5, 4, 3),
        lambda: make(batch, 5, 4, 3).transpose(0, 1).contiguous().transpose(0, 1),
    ]
    return Sample([forms[(t + 1) % len(forms)]() for t in range(tasks)], tasks)


def _slices(make: Make, tasks: int, batch: int) -> Sample:
    """Samples that lie apart, and rows that begin anywhere."""
    return Sample([make(batch, 40)[:, t % 4 : 20 + t % 4] for t in range(tasks)], tasks)


def _misaligned(make: Make, tasks: int, batch: int) -> Sample:
    return Sample([make(batch * 33 + t)[t:].view(batch, 33) for t in range(tasks)], tasks)


def _many(make: Make, tasks: int, batch: int) -> Sample:
    """A table that a launch's parameters do not hold."""
    return Sample([make(batch, p % 4) for _ in range(tasks) for p in range(200)], tasks)


BATCHES: dict[str, Callable[[Make, int, int], Sample]] = {
    "features": _features,
    "stacked": _stacked,
    "pyramid": _pyramid,
    "absent": _absent,
    "channels_last": _channels_last,
    "layouts_differ": _layouts_differ,
    "slices": _slices,
    "misaligned": _misaligned,
    "many": _many,
}


def one(given: Sample, b: int) -> Sample:
    """The gradients of one sample."""
    return Sample([None if g is None else g[:, b] if given.stacked else g[b] for g in given.grads], given.tasks, given.stacked)


def batch_of(given: Sample) -> int:
    """B."""
    return next(g.shape[int(given.stacked)] for g in given.grads if g is not None)


def exact_grams(given: Sample) -> Tensor:
    """K_b of float64 matrices. [B, T, T]"""
    rows = [one(given, b).matrix() for b in range(batch_of(given))]
    device = next(g.device for g in given.grads if g is not None)
    none = torch.empty(0, given.tasks, given.tasks, dtype=torch.float64, device=device)
    return torch.stack([G @ G.T for G in rows]) if rows else none


def algorithm_1(G: Tensor) -> Tensor:
    """Each sample's projections on full vectors, in ascending order. [T, B, D] -> [B, D] float64"""
    return torch.stack([pcgrad(G[:, b].double(), "ascending") for b in range(G.shape[1])])
