"""The operators in plain PyTorch: the specification the compiled kernels are tested against, and what runs where there are none.

Nothing here synchronizes with a CUDA device or branches on a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from .schema import LIBRARY

Gradients = Sequence[Tensor | None]

_CHUNK = 1 << 18  # coordinates widened to float64 at a time
_WORD = 0xFFFFFFFF


def rows_by_position(grads: Gradients, tasks: int, stacked: bool) -> list[list[Tensor | None]]:
    """[P][T] rows, whichever way the gradients came."""
    if stacked:
        return [[g[t] for t in range(tasks)] for g in grads if g is not None]
    count = len(grads) // tasks
    return [[grads[t * count + p] for t in range(tasks)] for p in range(count)]


def empty_like_any(rows: Gradients) -> Tensor:
    """A new tensor for the combination of these rows: laid out like the first that is there, of a type that holds all."""
    present = [row for row in rows if row is not None]
    return torch.empty_like(present[0], dtype=reduce(torch.promote_types, (row.dtype for row in present)))


def gram(grads: Gradients, tasks: int, stacked: bool = False, groups: Sequence[int] | None = None) -> Tensor:
    """K_ij = sum over all coordinates (of one group) of g_i g_j, in float64."""
    device = next(g.device for g in grads if g is not None)
    pieces = rows_by_position(grads, tasks, stacked)
    if not groups:
        return _gram(pieces, tasks, device)
    members: list[list[list[Tensor | None]]] = [[] for _ in range(max(groups) + 1)]
    for group, rows in zip(groups, pieces, strict=True):
        members[group].append(rows)
    return torch.stack([_gram(rows, tasks, device) for rows in members])


def _gram(pieces: Sequence[Gradients], tasks: int, device: torch.device) -> Tensor:
    total = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    for rows in pieces:
        flat = [None if row is None else row.reshape(-1) for row in rows]
        numel = next((row.numel() for row in flat if row is not None), 0)
        for start in range(0, numel, _CHUNK):
            stop = min(start + _CHUNK, numel)
            chunk = torch.zeros(tasks, stop - start, dtype=torch.float64, device=device)
            for t, row in enumerate(flat):
                if row is not None:
                    chunk[t] = row[start:stop]
            total += chunk @ chunk.T
    return total.triu() + total.triu(1).T


def philox(seed: Tensor, step: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
    """Philox 4x32-10 of the counters (step, third, fourth): four words each, as int64 in 0..2^32-1. [..., 4]"""
    key = [seed & _WORD, (seed >> 32) & _WORD]
    c = [(step & _WORD).expand(third.shape), ((step >> 32) & _WORD).expand(third.shape), third, fourth]
    for _ in range(10):
        # The low 64 bits of a product of two 32-bit words are right even where int64 wraps.
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            ((p1 >> 32) & _WORD) ^ c[1] ^ key[0],
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c[3] ^ key[1],
            p0 & _WORD,
        ]
        key = [(key[0] + 0x9E3779B9) & _WORD, (key[1] + 0xBB67AE85) & _WORD]
    return torch.stack(c, dim=-1)


def random_order(key: Tensor, tasks: int, group: int = 0) -> Tensor:
    """An independent uniformly random order of all tasks for each task (Fisher-Yates on Philox words). [T, T] int64"""
    task = torch.arange(tasks, device=key.device)
    order = task.expand(tasks, tasks).clone()
    blocks = torch.arange((tasks + 2) // 4 or 1, device=key.device)
    counters = (task << 16)[:, None] + blocks
    words = philox(key[0], key[1], torch.full_like(counters, group), counters).reshape(tasks, -1)
    for draw, k in enumerate(range(tasks - 1, 0, -1)):
        other = ((words[:, draw] * (k + 1)) >> 32)[:, None]
        held = order[:, k : k + 1].clone()
        order[:, k : k + 1] = order.gather(1, other)
        order.scatter_(1, other, held)
    return order


def pcgrad_weights(
    gram: Tensor,
    order: Tensor | None = None,
    key: Tensor | None = None,
    include_self: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """PCGrad's Algorithm 1 in Gram space: all T scans of all groups side by side. [T] or [G, T] float64"""
    tasks = gram.shape[-1]
    own = torch.arange(tasks, device=gram.device)
    finite = gram.isfinite().flatten(-2).all(-1)
    valid = finite
    if order is not None:
        valid = valid & ((order >= 0) & (order < tasks)).all()
        order = order.clamp(0, tasks - 1)
    elif key is not None:
        groups = gram.shape[0] if gram.dim() == 3 else 1
        order = torch.stack([random_order(key, tasks, group) for group in range(groups)])
        key[1] += finite.all().to(key.dtype)
    else:
        order = own.expand(tasks, tasks)
    order = order.expand(gram.shape) if gram.dim() == 3 else order.reshape(gram.shape)
    squares = gram.diagonal(dim1=-2, dim2=-1)
    dots = gram.clone()  # row i: <g_i^PC, g_j>
    coefficients = torch.eye(tasks, dtype=gram.dtype, device=gram.device).expand(gram.shape).clone()
    for k in range(tasks):
        j = order[..., k]
        dot, square = dots.gather(-1, j[..., None])[..., 0], squares.gather(-1, j)
        projected = (dot < 0) & (square > 0)
        if not include_self:
            projected = projected & (j != own)
        a = torch.where(projected, -dot / square, 0.0)
        dots = dots + a[..., None] * gram.gather(-2, j[..., None].expand(gram.shape))
        coefficients.scatter_add_(-1, j[..., None], a[..., None])
    return torch.where(valid[..., None], scale * coefficients.sum(-2), torch.nan)


def combine_(
    out: Sequence[Tensor],
    grads: Gradients,
    weights: Tensor,
    stacked: bool = False,
    accumulate: bool = False,
    groups: Sequence[int] | None = None,
) -> None:
    """out_p (+)= sum_t w_t g_tp with the w of p's group, in float64, rounded to out's type (by way of float32 to 16 bits)."""
    pieces = rows_by_position(grads, weights.shape[-1], stacked)
    of_piece = [weights[group] for group in groups] if groups else [weights] * len(pieces)
    for target, rows, w in zip(out, pieces, of_piece, strict=True):
        total = target.double() if accumulate else torch.zeros_like(target, dtype=torch.float64)
        for t, row in enumerate(rows):
            if row is not None:
                total = total + w[t] * row.double()
        target.copy_(total)


def combine(grads: Gradients, weights: Tensor, stacked: bool = False, groups: Sequence[int] | None = None) -> list[Tensor]:
    """As combine_, into new tensors."""
    out = [empty_like_any(piece) for piece in rows_by_position(grads, weights.shape[-1], stacked)]
    torch.ops.gradsurgery.combine_.default(out, grads, weights, stacked, False, groups)
    return out


def pcgrad_(
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
    """gram, pcgrad_weights and combine_ in turn."""
    K = gram(grads, tasks, stacked)
    w = pcgrad_weights(K, order, key, include_self, scale)
    combine_(out, grads, w, stacked, accumulate)
    return K, w


def _update_(
    buffers: Sequence[Tensor], grads: Gradients, tasks: int, stacked: bool, valid: Tensor | None, change: Callable[..., Tensor]
) -> tuple[list[bool], Tensor]:
    """y_t <- change(t, g_t, y_t) in float64 for tasks present. -> (which are [T], NaN for a new value not finite, else 0 [T])"""
    pieces = rows_by_position(grads, tasks, stacked)
    present = [any(piece[t] is not None for piece in pieces) for t in range(tasks)]
    broken = [torch.zeros((), dtype=torch.float64, device=buffers[0].device) for _ in range(tasks)]
    for buffer, piece in zip(buffers, pieces, strict=True):
        for t, row in enumerate(piece):
            if not present[t]:
                continue
            old = buffer[t].clone()
            new = change(t, torch.zeros_like(old) if row is None else row, old).to(old.dtype)
            broken[t] = broken[t] + (new - new).double().sum()
            kept = new.isfinite() if valid is None else new.isfinite() & valid
            buffer[t].copy_(torch.where(kept, new, old))
    return present, torch.stack(broken)


def ema_gram_(
    buffers: Sequence[Tensor],
    grads: Gradients,
    tasks: int,
    stacked: bool,
    scales: Tensor,
    rate: Tensor,
    valid: Tensor | None = None,
) -> Tensor:
    """y_t += rate (scales_t g_t - y_t), rounded to the buffers' type, then ``gram`` of the y of the tasks present."""

    def change(t: int, g: Tensor, y: Tensor) -> Tensor:
        return y.double() + rate * (scales[t] * g.double() - y.double())

    present, broken = _update_(buffers, grads, tasks, stacked, valid, change)
    K = gram([buffer[t] if present[t] else None for t in range(tasks) for buffer in buffers], tasks)
    K = K + broken[:, None] + broken
    return K if valid is None else torch.where(valid, K, torch.nan)


def excess_risk_(buffers: Sequence[Tensor], grads: Gradients, tasks: int, stacked: bool, valid: Tensor | None = None) -> Tensor:
    """r_t = sqrt(r_t^2 + g_t^2), rounded to the buffers' type, and e_t = sum g_t^2 / r_t over the r before rounding."""
    risks = [torch.zeros((), dtype=torch.float64, device=buffers[0].device) for _ in range(tasks)]

    def change(t: int, g: Tensor, r: Tensor) -> Tensor:
        g = g.double()
        root = torch.hypot(r.double(), g)
        risks[t] = risks[t] + torch.where(root == 0, 0.0, g * (g / root)).sum()
        return root

    _, broken = _update_(buffers, grads, tasks, stacked, valid, change)
    e = torch.stack(risks) + broken
    return e if valid is None else torch.where(valid, e, torch.nan)


for _function in (gram, pcgrad_weights, combine, combine_, pcgrad_, ema_gram_, excess_risk_):
    LIBRARY.impl(_function.__name__, _function, "CompositeExplicitAutograd")
