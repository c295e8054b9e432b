"""The only place that touches ``torch.ops``: schemas, reference, fakes, derivatives, and the compiled kernels over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import autograd, coordinatewise, fake, lazy, native, reference, samples, schema, solvers  # noqa: F401  (schemas first, kernels last)
from .native import build_info, warn_if_reference
from .small import pcgrad_small_, small_gram, small_matrix, weights_of_small_gram

__all__ = [
    "boundary",
    "boundary_backward",
    "build_info",
    "combine",
    "combine_",
    "combine_samples",
    "combine_samples_",
    "coordinatewise_",
    "ema_gram_",
    "excess_risk_",
    "gram",
    "gram_samples",
    "pcgrad_",
    "pcgrad_samples_",
    "pcgrad_small_",
    "pcgrad_weights",
    "small_gram",
    "small_matrix",
    "solve",
    "warn_if_reference",
    "weights_of_small_gram",
]

_ops = torch.ops.gradsurgery

# The overloads themselves: resolving an overload packet costs a microsecond a call.
gram: Callable[..., Tensor] = _ops.gram.default
pcgrad_weights: Callable[..., Tensor] = _ops.pcgrad_weights.default
solve: Callable[..., tuple[Tensor, Tensor]] = _ops.solve.default
combine: Callable[..., list[Tensor]] = _ops.combine.default
gram_samples: Callable[..., Tensor] = _ops.gram_samples.default
combine_samples: Callable[..., list[Tensor]] = _ops.combine_samples.default
boundary: Callable[..., list[Tensor]] = _ops.boundary.default
boundary_backward: Callable[..., list[Tensor]] = _ops.boundary_backward.default
_combine_ = _ops.combine_.default
_coordinatewise_ = _ops.coordinatewise_.default
_pcgrad_ = _ops.pcgrad_.default
_combine_samples_ = _ops.combine_samples_.default
_pcgrad_samples_ = _ops.pcgrad_samples_.default
_ema_gram_ = _ops.ema_gram_.default
_excess_risk_ = _ops.excess_risk_.default
_written = torch.autograd.graph.increment_version


def combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    weights: Tensor,
    stacked: bool = False,
    accumulate: bool = False,
    groups: Sequence[int] | None = None,
) -> None:
    """``combine_``, telling autograd that ``out`` has changed, which an operator of the stable ABI cannot."""
    _combine_(out, grads, weights, stacked, accumulate, groups)
    _written(out)


def coordinatewise_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    tasks: int,
    stacked: bool,
    rule: str,
    options: Sequence[float],
    uniform: Tensor | None = None,
    key: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """``coordinatewise_`` likewise."""
    _coordinatewise_(out, grads, tasks, stacked, rule, options, uniform, key, accumulate)
    _written(out)


def pcgrad_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    tasks: int,
    stacked: bool,
    order: Tensor | None,
    key: Tensor | None,
    include_self: bool,
    scale: float,
    accumulate: bool,
) -> tuple[Tensor, Tensor]:
    """``pcgrad_`` likewise. -> (K [T, T], w [T])"""
    result: tuple[Tensor, Tensor] = _pcgrad_(out, grads, tasks, stacked, order, key, include_self, scale, accumulate)
    _written(out)
    return result


def combine_samples_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    weights: Tensor,
    stacked: bool = False,
    accumulate: bool = False,
) -> None:
    """``combine_samples_`` likewise."""
    _combine_samples_(out, grads, weights, stacked, accumulate)
    _written(out)


def pcgrad_samples_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    tasks: int,
    stacked: bool,
    order: Tensor | None,
    key: Tensor | None,
    include_self: bool,
    scale: float,
    accumulate: bool,
) -> tuple[Tensor, Tensor]:
    """``pcgrad_samples_`` likewise. -> (K [B, T, T], w [B, T])"""
    result: tuple[Tensor, Tensor] = _pcgrad_samples_(out, grads, tasks, stacked, order, key, include_self, scale, accumulate)
    _written(out)
    return result


def ema_gram_(
    buffers: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    tasks: int,
    stacked: bool,
    scales: Tensor,
    rate: Tensor,
    valid: Tensor | None = None,
) -> Tensor:
    """``ema_gram_`` likewise, for ``buffers``. -> K [T, T]"""
    K: Tensor = _ema_gram_(buffers, grads, tasks, stacked, scales, rate, valid)
    _written(buffers)
    return K


def excess_risk_(
    buffers: Sequence[Tensor], grads: Sequence[Tensor | None], tasks: int, stacked: bool, valid: Tensor | None = None
) -> Tensor:
    """``excess_risk_`` likewise. -> e [T]"""
    e: Tensor = _excess_risk_(buffers, grads, tasks, stacked, valid)
    _written(buffers)
    return e
