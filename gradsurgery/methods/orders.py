"""The order in which each task meets the others: what PCGrad and GradVac share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .keys import check_seed, first_key, stateless_key

Order = Literal["random", "ascending"] | Tensor


def check_order(order: Order, seed: int | None) -> None:
    """Raises unless both are options that ``arrange`` takes.

    Raises:
        ValueError, TypeError: ``order`` or ``seed``, by name.
    """
    if isinstance(order, Tensor):
        _check_given(order)
    elif not isinstance(order, str) or order not in ("random", "ascending"):
        raise ValueError(f"order: expected 'random', 'ascending' or an int64 tensor [T, T], found {order!r}.")
    check_seed(seed)


def _check_given(order: Tensor) -> None:
    if order.dim() != 2 or order.shape[0] != order.shape[1] or order.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"order: expected an int64 tensor [T, T], found {order.dtype} of shape {list(order.shape)}.")
    if order.device.type != "cuda":  # there the check would wait for the device; the kernel answers NaN instead
        expected = torch.arange(order.shape[0], device=order.device)
        if not bool((order.sort(dim=1).values == expected).all()):
            raise ValueError(f"order: expected every row to be a permutation of 0..{order.shape[0] - 1}, found {order.tolist()}.")


def initial_key(order: Order, seed: int | None) -> dict[str, Tensor]:
    """The counter (seed, step) behind random orders, as a method's state."""
    random = isinstance(order, str) and order == "random"
    return {"key": first_key(seed)} if random else {}


def arrange(
    order: Order, seed: int | None, tasks: int, device: torch.device, key: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(order, key), of which at most one is given; ``key`` is the state's, if there is one."""
    if not isinstance(order, str):
        if order.shape[0] != tasks:
            raise ValueError(f"order: expected shape [{tasks}, {tasks}] for {tasks} tasks, found {list(order.shape)}.")
        return order.to(device, torch.int64, non_blocking=True).contiguous(), None
    if order == "ascending":
        return None, None
    return None, stateless_key(seed, device) if key is None else key
