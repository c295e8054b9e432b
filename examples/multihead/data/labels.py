"""The words that every reader shares: the four tasks, and what a label is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

CLASSES = ("company", "model")
NUMBERS = ("diameter", "length")
TASKS = (*CLASSES, *NUMBERS)

Label = str | float | None
Labels = Mapping[str, Label]  # task -> label; None where missing


class Source(Protocol):
    """A list of products: their labels are known at once, their pictures one at a time."""

    name: str  # of the data, for titles
    where: str  # it comes from, for errors
    unit: str  # of diameter and length, with the space before it; empty where the data does not say
    labels: tuple[Labels, ...]

    def __len__(self) -> int: ...

    def load(self, index: int, size: int) -> Tensor:
        """The picture, uint8 [3, size, size]."""
        ...
