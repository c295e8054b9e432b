"""The operators of every sample by itself, in plain PyTorch; see ``schema.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import Gradients, empty_like_any, pcgrad_weights, rows_by_position
from .schema import LIBRARY

_CHUNK = 1 << 18  # coordinates of all samples widened to float64 at a time


def gram_samples(grads: Gradients, tasks: int, stacked: bool = False) -> Tensor:
    """K_bij = sum over the coordinates of sample b of g_i g_j, in float64. [B, T, T]"""
    B = sample_count(grads, stacked)
    device = next(g.device for g in grads if g is not None)
    total = torch.zeros(B, tasks, tasks, dtype=torch.float64, device=device)
    for rows in rows_by_position(grads, tasks, stacked):
        flat = [None if row is None or row.numel() == 0 else row.reshape(B, -1) for row in rows]
        numel = next((row.shape[1] for row in flat if row is not None), 0)
        width = max(_CHUNK // max(B, 1), 1)
        for start in range(0, numel, width):
            stop = min(start + width, numel)
            chunk = torch.zeros(B, tasks, stop - start, dtype=torch.float64, device=device)
            for t, row in enumerate(flat):
                if row is not None:
                    chunk[:, t] = row[:, start:stop]
            total += chunk @ chunk.mT
    return total.triu() + total.triu(1).mT


def combine_samples_(
    out: Sequence[Tensor], grads: Gradients, weights: Tensor, stacked: bool = False, accumulate: bool = False
) -> None:
    """out_pb (+)= sum_t w_bt g_tpb, in float64, rounded to out's type (by way of float32 to 16 bits)."""
    for target, rows in zip(out, rows_by_position(grads, weights.shape[-1], stacked), strict=True):
        total = target.double() if accumulate else torch.zeros_like(target, dtype=torch.float64)
        for t, row in enumerate(rows):
            if row is not None:
                total = total + of_sample(weights[:, t], row) * row.double()
        target.copy_(total)


def combine_samples(grads: Gradients, weights: Tensor, stacked: bool = False) -> list[Tensor]:
    """As combine_samples_, into new tensors."""
    out = [empty_like_any(piece) for piece in rows_by_position(grads, weights.shape[-1], stacked)]
    torch.ops.gradsurgery.combine_samples_.default(out, grads, weights, stacked, False)
    return out


def pcgrad_samples_(
    out: Sequence[Tensor],
    grads: Gradients,
    tasks: int,
    stacked: bool = False,
    order: Tensor | None = None,
    key: Tensor | None = None,
    include_self: bool = False,
    scale: float = 1.0,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """gram_samples, pcgrad_weights of the B of them, and combine_samples_ in turn."""
    K = gram_samples(grads, tasks, stacked)
    if len(K) > 0:
        w = pcgrad_weights(K, order, key, include_self, scale)
    else:  # no K that is not finite
        w = K.new_empty(0, tasks)
        if key is not None:
            key[1] += 1
    combine_samples_(out, grads, w, stacked, accumulate)
    return K, w


def sample_count(grads: Gradients, stacked: bool) -> int:
    """B of gradients [B, ...], stacked [T, B, ...]."""
    return next(g.shape[int(stacked)] for g in grads if g is not None)


def of_sample(values: Tensor, like: Tensor) -> Tensor:
    """A number a sample [B], as it multiplies a tensor [B, ...]."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


for _function in (gram_samples, combine_samples, combine_samples_, pcgrad_samples_):
    LIBRARY.impl(_function.__name__, _function, "CompositeExplicitAutograd")
