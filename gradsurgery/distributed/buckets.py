"""Gradients side by side in flat tensors, so that few messages carry many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradsurgery.capture.parameters import grad_dtype

from .cost import BUCKET_BYTES


@dataclass(frozen=True)
class Slot:
    """Where a leaf's gradient stands in a bucket.

    Attributes:
        leaf: whose gradient; in the order of its elements, however it is laid out, as that may differ from rank to rank.
        start, stop: its elements.
    """

    leaf: Tensor
    start: int
    stop: int

    def of(self, flat: Tensor) -> Tensor:
        """The gradient as a view of the bucket."""
        return flat[self.start : self.stop].view(self.leaf.shape)


@dataclass
class Bucket:
    """Gradients of one dtype that travel together.

    Attributes:
        dtype, device: of all of them.
        slots: in the order in which they stand.
        size: of the flat tensor, in elements: of the gradients, and of what is added at its end.
    """

    dtype: torch.dtype
    device: torch.device
    slots: list[Slot] = field(default_factory=list)
    size: int = 0

    def append(self, leaf: Tensor) -> None:
        """Makes room for a leaf's gradient."""
        self.slots.append(Slot(leaf, self.size, self.size + leaf.numel()))
        self.size += leaf.numel()

    def empty(self) -> Tensor:
        """A flat tensor for it, in which what is not of a gradient is zero. [size]"""
        flat = torch.empty(self.size, dtype=self.dtype, device=self.device)
        flat[self.slots[-1].stop if self.slots else 0 :].zero_()
        return flat

    def pack(self, flat: Tensor, gradients: Mapping[int, Tensor], parts: int) -> None:
        """Fills a flat tensor with the gradients, by the leaves' ids, over ``parts``; with zeros, where there is none.

        Divided as they are copied, which costs nothing, and before they are summed, which could overflow in float16. A sparse
        gradient becomes dense.
        """
        for slot in self.slots:
            gradient = gradients.get(id(slot.leaf))
            if gradient is None:
                slot.of(flat).zero_()
            else:
                torch.div(gradient.to_dense() if gradient.is_sparse else gradient, parts, out=slot.of(flat))


def buckets_of(leaves: Sequence[Tensor], multiple: int = 1, more: int = 0) -> list[Bucket]:
    """Buckets for the gradients of leaves, the last leaf first, as backward passes come to it first.

    Args:
        leaves: in the same order on every rank.
        multiple: of which their sizes are.
        more: how many elements to add at the end of the last bucket.
    """
    made: list[Bucket] = []
    filling: dict[tuple[torch.dtype, torch.device], Bucket] = {}
    for leaf in reversed(leaves):
        kind = (grad_dtype(leaf), leaf.device)
        bucket = filling.get(kind)
        if bucket is None or (bucket.size + leaf.numel()) * kind[0].itemsize > BUCKET_BYTES:
            bucket = filling[kind] = Bucket(*kind)
            made.append(bucket)
        bucket.append(leaf)
    if more and made:
        made[-1].size += more
    for bucket in made:
        bucket.size += -bucket.size % multiple
    return made
