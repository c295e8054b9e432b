"""Shapes without values, for torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import Gradients, empty_like_any
from .samples import sample_count
from .schema import LIBRARY


def _float64(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _any(grads: Gradients) -> Tensor:
    return next(g for g in grads if g is not None)


@torch.library.register_fake("gradsurgery::gram", lib=LIBRARY)
def _(grads: Gradients, tasks: int, stacked: bool = False, groups: Sequence[int] | None = None) -> Tensor:
    return _float64(_any(grads), *([max(groups) + 1] if groups else []), tasks, tasks)


@torch.library.register_fake("gradsurgery::pcgrad_weights", lib=LIBRARY)
def _(gram: Tensor, *_: Any, **__: Any) -> Tensor:
    return _float64(gram, *gram.shape[:-1])


@torch.library.register_fake("gradsurgery::solve", lib=LIBRARY)
def _(gram: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _float64(gram, *gram.shape[:-1]), _float64(gram, *gram.shape[:-2], 4)


@torch.library.register_fake("gradsurgery::gram_samples", lib=LIBRARY)
def _(grads: Gradients, tasks: int, stacked: bool = False) -> Tensor:
    return _float64(_any(grads), sample_count(grads, stacked), tasks, tasks)


@torch.library.register_fake("gradsurgery::combine_samples", lib=LIBRARY)
@torch.library.register_fake("gradsurgery::combine", lib=LIBRARY)
def _(grads: Gradients, weights: Tensor, stacked: bool = False, groups: Sequence[int] | None = None) -> list[Tensor]:
    tasks = weights.shape[-1]
    if stacked:
        return [torch.empty_like(g[0]) for g in grads if g is not None]
    count = len(grads) // tasks
    return [empty_like_any(grads[p::count]) for p in range(count)]


@torch.library.register_fake("gradsurgery::combine_samples_", lib=LIBRARY)
@torch.library.register_fake("gradsurgery::combine_", lib=LIBRARY)
def _(out: Sequence[Tensor], grads: Gradients, weights: Tensor, *_: Any, **__: Any) -> None:
    return None


@torch.library.register_fake("gradsurgery::coordinatewise_", lib=LIBRARY)
def _(out: Sequence[Tensor], grads: Gradients, tasks: int, *_: Any, **__: Any) -> None:
    return None


@torch.library.register_fake("gradsurgery::pcgrad_", lib=LIBRARY)
def _(out: Sequence[Tensor], grads: Gradients, tasks: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _float64(_any(grads), tasks, tasks), _float64(_any(grads), tasks)


@torch.library.register_fake("gradsurgery::pcgrad_samples_", lib=LIBRARY)
def _(out: Sequence[Tensor], grads: Gradients, tasks: int, stacked: bool = False, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    B = sample_count(grads, stacked)
    return _float64(_any(grads), B, tasks, tasks), _float64(_any(grads), B, tasks)


@torch.library.register_fake("gradsurgery::ema_gram_", lib=LIBRARY)
def _(buffers: Sequence[Tensor], grads: Gradients, tasks: int, *_: Any, **__: Any) -> Tensor:
    return _float64(_any(grads), tasks, tasks)


@torch.library.register_fake("gradsurgery::excess_risk_", lib=LIBRARY)
def _(buffers: Sequence[Tensor], grads: Gradients, tasks: int, *_: Any, **__: Any) -> Tensor:
    return _float64(_any(grads), tasks)


@torch.library.register_fake("gradsurgery::boundary_backward", lib=LIBRARY)
def _(grads: Gradients, number: int, tasks: Sequence[str], *_: Any) -> list[Tensor]:
    P = len(grads) // len(tasks)
    columns = [grads[p::P] for p in range(P)]
    return [empty_like_any(column) for column in columns if any(g is not None for g in column)]
