"""Seeds and counters of methods that draw random numbers."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_is_compiling = torch.compiler.is_compiling


class _Drawn(threading.local):
    """The key of a call without state, one a thread. Reused: drawing into a new tensor would double the cost of a small call."""

    def __init__(self) -> None:
        self.key = torch.empty(2, dtype=torch.int64, device="cpu")


_drawn = _Drawn()


def check_seed(seed: int | None) -> None:
    """Raises unless ``seed`` is None or an integer of 64 bits."""
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"seed: expected an integer or None, found {type(seed).__name__}.")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an integer of 64 bits, found {seed}.")


def first_key(seed: int | None) -> Tensor:
    """(seed, step) before the first step. [2] int64, on the CPU"""
    return torch.tensor([seed or 0, 0], device="cpu")


def stateless_key(seed: int | None, device: torch.device) -> Tensor:
    """Of a call without state: step 0 of the seed, or a draw from torch's default generator where there is none. [2] int64"""
    if seed is not None:
        key = first_key(seed)
    elif _is_compiling():  # the compiler knows no random_
        key = torch.randint(2**63 - 1, (2,), device="cpu")
    else:
        key = _drawn.key.random_()
    return key if device.type == "cpu" else key.to(device, non_blocking=True)
