"""Form B: features cut off from the trunk, so that heads are propagated one by one and only one head's graph is alive at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .features import Features


class Detached:
    """Leaves that hand every backward's gradient to a task of its own instead of adding them up.

    A backward that reaches any of the leaves is one task, recognised by autograd's number for that backward. Inside
    ``naming(name)`` it belongs to the named task; several backwards under one name add up.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.leaves: list[Tensor] = []
        self.named: dict[str, list[Tensor | None]] = {}
        self.unnamed: dict[int, list[Tensor | None]] = {}  # by backward, in order of arrival
        self.name: str | None = None
        for p, tensor in enumerate(features.tensors):
            leaf = tensor.detach().requires_grad_()
            leaf.register_post_accumulate_grad_hook(lambda leaf, p=p: self._capture(p, leaf))
            self.leaves.append(leaf)

    @property
    def tree(self) -> Any:
        """The detached features, for the heads."""
        return self.features.rebuild(self.leaves)

    def _capture(self, p: int, leaf: Tensor) -> None:
        grad, leaf.grad = leaf.grad, None
        if self.name is not None:
            row = self.named.setdefault(self.name, [None] * len(self.leaves))
        else:
            backward = torch._C._current_graph_task_id()
            row = self.unnamed.setdefault(backward, [None] * len(self.leaves))
        held = row[p]
        row[p] = grad if held is None or grad is None else held + grad

    def release(self) -> None:
        """Lets go of the trunk's graph and of the captured gradients."""
        self.named.clear()
        self.unnamed.clear()
        self.leaves.clear()
