"""Derivatives of ``gram`` and ``combine``.

dK contracts to g_i: sum_j (dK + dK^T)_ij g_j, a combine again; out = sum_t w_t g_t is linear in g and in w. The weights of a method
are constants of the step, as in the papers: ``pcgrad_weights`` has no derivative.

These are autograd functions under the Autograd dispatch key, since ``torch.library.register_autograd`` knows lists of tensors but
not lists with gaps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .reference import Gradients
from .schema import LIBRARY

_ops = torch.ops.gradsurgery


def _save(ctx: Any, grads: Gradients, *others: Tensor) -> None:
    ctx.present = [g is not None for g in grads]
    ctx.save_for_backward(*(g for g in grads if g is not None), *others)


def _saved(ctx: Any) -> tuple[list[Tensor | None], list[Tensor]]:
    tensors = list(ctx.saved_tensors)
    grads = [tensors.pop(0) if present else None for present in ctx.present]
    return grads, tensors


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tasks: int, stacked: bool, *grads: Tensor | None) -> Tensor:
        ctx.tasks, ctx.stacked = tasks, stacked
        _save(ctx, grads)
        with torch._C._AutoDispatchBelowAutograd():
            K: Tensor = _ops.gram(grads, tasks, stacked)
        return K

    @staticmethod
    def backward(ctx: Any, dK: Tensor) -> tuple[Any, ...]:
        grads, _ = _saved(ctx)
        symmetric = (dK + dK.T).contiguous()
        tasks = range(ctx.tasks)
        if ctx.stacked:
            per_task = [_ops.combine(grads, symmetric[i], True) for i in tasks]  # [T][P]
            return None, None, *(torch.stack(parts) for parts in zip(*per_task, strict=True))
        P = len(grads) // ctx.tasks
        reached = [p for p in range(P) if any(g is not None for g in grads[p::P])]
        entries = [grads[t * P + p] for t in tasks for p in reached]
        if len({g.dtype for g in entries if g is not None}) > 1:  # each row's derivative is rounded to its own type, below
            entries = [None if g is None else g.double() for g in entries]
        result: list[Tensor | None] = [None] * len(grads)
        for i in tasks:
            for p, part in zip(reached, _ops.combine(entries, symmetric[i], False), strict=True):
                row = grads[i * P + p]
                if row is not None:
                    result[i * P + p] = part.to(row.dtype)
        return None, None, *result


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, stacked: bool, *grads: Tensor | None) -> tuple[Tensor, ...]:
        ctx.stacked = stacked
        _save(ctx, grads, weights)
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_ops.combine(grads, weights, stacked))

    @staticmethod
    def backward(ctx: Any, *dout: Tensor) -> tuple[Any, ...]:
        grads, (weights,) = _saved(ctx)
        tasks, pieces = weights.shape[0], len(dout)
        dw: list[Tensor] = [weights.new_zeros(()) for _ in range(tasks)]
        result: list[Tensor | None] = []
        for index, grad in enumerate(grads):
            d = dout[index % pieces]
            if grad is None:
                result.append(None)
            elif ctx.stacked:
                dots = (grad.double() * d.double()).flatten(1).sum(1)
                dw = [total + dot for total, dot in zip(dw, dots, strict=True)]
                result.append((weights.reshape(-1, *[1] * d.dim()) * d).to(grad.dtype))
            else:
                task = index // pieces
                dw[task] = dw[task] + (grad.double() * d.double()).sum()
                result.append((weights[task] * d).to(grad.dtype))
        return torch.stack(dw), None, *result


def _differentiable(grads: Gradients, *others: Tensor) -> bool:
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (*grads, *others)
    ):
        raise NotImplementedError("gradsurgery: forward-mode differentiation is not supported; use reverse mode.")
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*grads, *others))


def _gram(grads: Gradients, tasks: int, stacked: bool = False) -> Tensor:
    if _differentiable(grads):
        return _Gram.apply(tasks, stacked, *grads)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.gram(grads, tasks, stacked)  # type: ignore[no-any-return]


def _combine(grads: Gradients, weights: Tensor, stacked: bool = False) -> list[Tensor]:
    if _differentiable(grads, weights):
        return list(_Combine.apply(weights, stacked, *grads))
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.combine(grads, weights, stacked)  # type: ignore[no-any-return]


LIBRARY.impl("gram", _gram, "Autograd")
LIBRARY.impl("combine", _combine, "Autograd")
