"""The shortest way for a small dense G or K on the CPU: the kernels by address, past the dispatcher.

At T = 4 and N = 1,000 the arithmetic takes half a microsecond and a dispatched operator five.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .native import pcgrad_small, pcgrad_weights_small

_LARGEST = 1 << 16  # elements of G, ten microseconds; above, threads are worth their price
_MOST_TASKS = 64  # the T x T work is then small, too
_SCALARS = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/common/rows.h
_is_compiling = torch.compiler.is_compiling
_written = torch.autograd.graph.increment_version

SmallMatrix = tuple[int, int, int, int, int]
"""Where a small problem lies: addresses of ``out`` [N] and G [T, N], T, N, and the scalar type."""


def small_matrix(out: object, grads: Tensor) -> SmallMatrix | None:
    """The problem of ``pcgrad_small_`` that these unchecked arguments pose, or None where it does not apply.

    None says nothing about the arguments: the operator's way checks them anew and words the errors.
    """
    if pcgrad_small is None or type(grads) is not Tensor or type(out) is not Tensor or _is_compiling():
        return None
    numel, N = grads.numel(), out.numel()
    scalar = _SCALARS.get(grads.dtype)
    if not (
        0 < numel <= _LARGEST
        and grads.is_cpu
        and out.is_cpu
        and scalar is not None
        and out.dtype is grads.dtype
        and grads.dim() == 2
        and out.dim() == 1
    ):
        return None
    try:
        dense = grads.is_contiguous() and out.is_contiguous() and not grads.is_neg() and not out.is_neg()  # see lazy.py
        to, source = out.data_ptr(), grads.data_ptr()
    except RuntimeError:  # a layout without strides or without memory of its own
        return None
    T = grads.size(0)
    if not dense or not to or not source or numel != T * N or T > _MOST_TASKS:
        return None
    row = N * out.element_size()
    beside = to - source
    if -row < beside < T * row and (beside < 0 or beside % row):  # over a border between two rows
        return None
    return to, source, T, N, scalar


def pcgrad_small_(
    problem: SmallMatrix, out: Tensor, order: Tensor | None, key: Tensor | None, include_self: bool, scale: float
) -> None:
    """``pcgrad_`` on a problem that ``small_matrix`` found, without returning K and w."""
    assert pcgrad_small is not None
    order_address = 0 if order is None else order.data_ptr()
    pcgrad_small(*problem, order_address, 0 if key is None else key.data_ptr(), include_self, scale)
    _written(out)


def small_gram(gram: object) -> tuple[int, int] | None:
    """Address and T of an unchecked K [T, T] that ``weights_of_small_gram`` takes, or None, which says nothing about it."""
    if pcgrad_weights_small is None or type(gram) is not Tensor or _is_compiling():
        return None
    if not (gram.dtype is torch.float64 and gram.is_cpu and gram.dim() == 2 and gram.layout is torch.strided):
        return None
    T, address = gram.size(0), gram.data_ptr()
    if not address or gram.numel() != T * T or T > _MOST_TASKS or not gram.is_contiguous() or gram.is_neg():  # see lazy.py
        return None
    return address, T


def weights_of_small_gram(
    problem: tuple[int, int], order: Tensor | None, key: Tensor | None, include_self: bool, scale: float
) -> Tensor:
    """``pcgrad_weights`` of a K that ``small_gram`` found. [T]"""
    assert pcgrad_weights_small is not None
    address, T = problem
    w = torch.empty(T, dtype=torch.float64, device="cpu")
    order_address = 0 if order is None else order.data_ptr()
    pcgrad_weights_small(w.data_ptr(), address, T, order_address, 0 if key is None else key.data_ptr(), include_self, scale)
    return w
