"""What a provider is."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], Tensor]


def not_installed(name: str) -> str | None:
    """Why nothing of another library's can be measured, or None; ``name`` begins with the library's."""
    return "TorchJD is not installed" if name.startswith("torchjd") and importlib.util.find_spec("torchjd") is None else None


def seed_all(seed: int) -> None:
    """Seeds every generator that a provider may draw its orders from."""
    random.seed(seed)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Provider:
    """One implementation of PCGrad.

    Attributes:
        name: in rows and on the command line.
        title: in tables.
        prepare: G [T, N] -> the call that is timed; it returns the surgery's result [N], which the next call may overwrite.
        orders: T -> the orders [T][<= T] that the next call will draw. Drawn from the same generators, so that after the same seed
            the two agree, and the result can be checked exactly although the order is random.
    """

    name: str
    title: str
    prepare: Callable[[Tensor], Run]
    orders: Callable[[int], list[list[int]]]
