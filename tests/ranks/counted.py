"""The messages that a process sends, whoever sends them: Python, DistributedDataParallel's reducer in C++, or FSDP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COLLECTIVES = ("c10d", "_c10d_functional")


class Message(NamedTuple):
    """One collective.

    Attributes:
        name: of c10d's operator, which every collective goes through.
        elements: how many, of all tensors that are given to it.
        dtype: theirs.
    """

    name: str
    elements: int
    dtype: torch.dtype


class Counted(TorchDispatchMode):
    """Writes down every collective that is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in COLLECTIVES:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            if tensors:  # waits and barriers have none
                self.messages.append(Message(func._opname, sum(t.numel() for t in tensors), tensors[0].dtype))
        return func(*args, **(kwargs or {}))


def profiled(events: Any) -> int:
    """How many collectives torch's profiler saw, which counts by other means."""
    return sum(event.count for event in events if event.key.startswith("c10d::"))
