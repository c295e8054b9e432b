"""The shortest way for a small dense matrix on the CPU: the kernels by address, past the dispatcher.

At T = 4 and N = 1,000 the arithmetic takes half a microsecond and a dispatched operator five.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .native import pcgrad_small

_LARGEST = 1 << 14  # elements of G; above, threads and the dispatcher's bookkeeping are worth their price
_SCALARS = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/common/rows.h
_written = torch.autograd.graph.increment_version


def pcgrad_if_small_(
    out: Tensor, grads: Tensor, order: Tensor | None, key: Tensor | None, include_self: bool, scale: float
) -> bool:
    """``pcgrad_`` on ``grads`` [T, N] into ``out`` [N] without returning K and w; False, and nothing done, where it does not apply.

    ``out`` has been checked to be a tensor of one row's shape on the same device. Subclasses of Tensor take the
    operator.
    """
    if (
        pcgrad_small is None
        or torch.compiler.is_compiling()
        or type(grads) is not Tensor
        or type(out) is not Tensor
        or not grads.is_cpu
        or grads.numel() > _LARGEST
        or out.dtype is not grads.dtype
        or not grads.is_contiguous()
        or not out.is_contiguous()
        or grads.is_neg()  # see lazy.py
        or out.is_neg()
    ):
        return False
    address = grads.data_ptr()
    if not address:  # no elements, or zeros without storage
        return False
    pcgrad_small(
        out.data_ptr(),
        address,
        grads.shape[0],
        out.numel(),
        _SCALARS[grads.dtype],
        0 if order is None else order.data_ptr(),
        0 if key is None else key.data_ptr(),
        include_self,
        scale,
    )
    _written(out)
    return True
