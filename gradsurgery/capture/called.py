"""A number that calls back when it is propagated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Called(torch.autograd.Function):
    """A value whose backward pass is a call, with what multiplied it on the way to ``backward()``.

    The graphs that the call goes through hang on it rather than on this node: autograd would run them, too.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, call: Callable[[Tensor], None]) -> Tensor:
        ctx.call = call
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None, None]:
        with torch.enable_grad():
            ctx.call(scale)
        return None, None, None
