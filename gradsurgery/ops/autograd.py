"""Derivatives of ``gram`` and ``combine``, and of ``gram_samples`` and ``combine_samples``.

dK contracts to g_i: sum_j (dK + dK^T)_ij g_j, a combine again; out = sum_t w_t g_t is linear in g and in w. Each group of positions
has its own K, dK and w, and so has each sample. The weights of a method are constants of the step, as in the papers:
``pcgrad_weights`` has no derivative.

These are autograd functions under the Autograd dispatch key, since ``torch.library.register_autograd`` knows lists of tensors but
not lists with gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .reference import Gradients
from .samples import of_sample
from .schema import LIBRARY

# The overloads themselves: resolving an overload packet costs a microsecond a call.
_gram_op = torch.ops.gradsurgery.gram.default
_combine_op = torch.ops.gradsurgery.combine.default
_gram_samples_op = torch.ops.gradsurgery.gram_samples.default
_combine_samples_op = torch.ops.gradsurgery.combine_samples.default

SAMPLES: Final = "samples"
Groups: TypeAlias = Sequence[int] | Literal["samples"] | None
"""What has a K of its own: each group of positions, all of them together, or each sample."""


def _gram_of(grads: Gradients, tasks: int, stacked: bool, groups: Groups) -> Tensor:
    if groups == SAMPLES:
        return _gram_samples_op(grads, tasks, stacked)  # type: ignore[no-any-return]
    return _gram_op(grads, tasks, stacked, groups)  # type: ignore[no-any-return]


def _combine_of(grads: Gradients, weights: Tensor, stacked: bool, groups: Groups) -> list[Tensor]:
    if groups == SAMPLES:
        return _combine_samples_op(grads, weights, stacked)  # type: ignore[no-any-return]
    return _combine_op(grads, weights, stacked, groups)  # type: ignore[no-any-return]


def _save(ctx: Any, grads: Gradients, *others: Tensor) -> None:
    ctx.present = [g is not None for g in grads]
    ctx.save_for_backward(*(g for g in grads if g is not None), *others)


def _saved(ctx: Any) -> tuple[list[Tensor | None], list[Tensor]]:
    tensors = list(ctx.saved_tensors)
    grads = [tensors.pop(0) if present else None for present in ctx.present]
    return grads, tensors


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tasks: int, stacked: bool, groups: Groups, *grads: Tensor | None) -> Tensor:
        ctx.tasks, ctx.stacked, ctx.groups = tasks, stacked, groups
        _save(ctx, grads)
        with torch._C._AutoDispatchBelowAutograd():
            return _gram_of(grads, tasks, stacked, groups)

    @staticmethod
    def backward(ctx: Any, dK: Tensor) -> tuple[Any, ...]:
        grads, _ = _saved(ctx)
        w = [row.contiguous() for row in (dK + dK.mT).unbind(-2)]  # [T] of [T], [G, T] or [B, T]
        tasks = range(ctx.tasks)
        if ctx.stacked:
            per_task = [_combine_of(grads, w[i], True, ctx.groups) for i in tasks]  # [T][P]
            return None, None, None, *(torch.stack(parts) for parts in zip(*per_task, strict=True))
        P = len(grads) // ctx.tasks
        reached = [p for p in range(P) if any(g is not None for g in grads[p::P])]
        entries = [grads[t * P + p] for t in tasks for p in reached]
        groups = ctx.groups if ctx.groups == SAMPLES else [ctx.groups[p] for p in reached] if ctx.groups else None
        if len({g.dtype for g in entries if g is not None}) > 1:  # each row's derivative is rounded to its own type, below
            entries = [None if g is None else g.double() for g in entries]
        result: list[Tensor | None] = [None] * len(grads)
        for i in tasks:
            for p, part in zip(reached, _combine_of(entries, w[i], False, groups), strict=True):
                row = grads[i * P + p]
                if row is not None:
                    result[i * P + p] = part.to(row.dtype)
        return None, None, None, *result


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, stacked: bool, groups: Sequence[int] | None, *grads: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.stacked, ctx.groups = stacked, groups
        _save(ctx, grads, weights)
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_combine_op(grads, weights, stacked, groups))

    @staticmethod
    def backward(ctx: Any, *dout: Tensor) -> tuple[Any, ...]:
        grads, (weights,) = _saved(ctx)
        tasks, pieces = weights.shape[-1], len(dout)
        rows = weights.reshape(-1, tasks)  # [G, T]
        dw: list[list[Tensor]] = [[weights.new_zeros(())] * tasks for _ in range(len(rows))]
        result: list[Tensor | None] = []
        for index, grad in enumerate(grads):
            d = dout[index % pieces]
            group = ctx.groups[index % pieces] if ctx.groups else 0
            if grad is None:
                result.append(None)
            elif ctx.stacked:
                dots = (grad.double() * d.double()).flatten(1).sum(1)
                dw[group] = [total + dot for total, dot in zip(dw[group], dots, strict=True)]
                result.append((rows[group].reshape(-1, *[1] * d.dim()) * d).to(grad.dtype))
            else:
                task = index // pieces
                dw[group][task] = dw[group][task] + (grad.double() * d.double()).sum()
                result.append((rows[group, task] * d).to(grad.dtype))
        return torch.stack([total for row in dw for total in row]).reshape(weights.shape), None, None, *result


class _CombineSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, stacked: bool, *grads: Tensor | None) -> tuple[Tensor, ...]:
        ctx.stacked = stacked
        _save(ctx, grads, weights)
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_combine_samples_op(grads, weights, stacked))

    @staticmethod
    def backward(ctx: Any, *dout: Tensor) -> tuple[Any, ...]:
        grads, (weights,) = _saved(ctx)
        tasks, pieces = weights.shape[-1], len(dout)
        dw = [torch.zeros_like(weights[:, t]) for t in range(tasks)]  # [T] of [B]
        result: list[Tensor | None] = []
        for index, grad in enumerate(grads):
            d = dout[index % pieces]
            if grad is None:
                result.append(None)
                continue
            rows = list(grad.unbind()) if ctx.stacked else [grad]
            first = 0 if ctx.stacked else index // pieces
            for t, row in enumerate(rows, first):
                dots = row.double() * d.double()
                dw[t] = dw[t] + dots.sum(tuple(range(1, d.dim()))) if d.dim() > 1 else dw[t] + dots
            parts = [(of_sample(weights[:, t], d) * d).to(grad.dtype) for t, _ in enumerate(rows, first)]
            result.append(torch.stack(parts) if ctx.stacked else parts[0])
        return torch.stack(dw, dim=1), None, *result


def _differentiable(grads: Gradients, *others: Tensor) -> bool:
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (*grads, *others)
    ):
        raise NotImplementedError("gradsurgery: forward-mode differentiation is not supported; use reverse mode.")
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*grads, *others))


def _gram(grads: Gradients, tasks: int, stacked: bool = False, groups: Sequence[int] | None = None) -> Tensor:
    if _differentiable(grads):
        return _Gram.apply(tasks, stacked, groups, *grads)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _gram_op(grads, tasks, stacked, groups)  # type: ignore[no-any-return]


def _combine(grads: Gradients, weights: Tensor, stacked: bool = False, groups: Sequence[int] | None = None) -> list[Tensor]:
    if _differentiable(grads, weights):
        return list(_Combine.apply(weights, stacked, groups, *grads))
    with torch._C._AutoDispatchBelowAutograd():
        return _combine_op(grads, weights, stacked, groups)  # type: ignore[no-any-return]


def _gram_samples(grads: Gradients, tasks: int, stacked: bool = False) -> Tensor:
    if _differentiable(grads):
        return _Gram.apply(tasks, stacked, SAMPLES, *grads)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _gram_samples_op(grads, tasks, stacked)  # type: ignore[no-any-return]


def _combine_samples(grads: Gradients, weights: Tensor, stacked: bool = False) -> list[Tensor]:
    if _differentiable(grads, weights):
        return list(_CombineSamples.apply(weights, stacked, *grads))
    with torch._C._AutoDispatchBelowAutograd():
        return _combine_samples_op(grads, weights, stacked)  # type: ignore[no-any-return]


LIBRARY.impl("gram", _gram, "Autograd")
LIBRARY.impl("gram_samples", _gram_samples, "Autograd")
LIBRARY.impl("combine_samples", _combine_samples, "Autograd")
LIBRARY.impl("combine", _combine, "Autograd")
