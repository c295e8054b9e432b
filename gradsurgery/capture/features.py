"""Features: a tensor, or any pytree of tensors such as an FPN's dict; only its differentiable leaves take part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Features:
    """The leaves of a pytree, and which of them carry gradients."""

    leaves: list[Any]
    structure: pytree.TreeSpec
    differentiable: list[int]

    @classmethod
    def of(cls, features: Any, caller: str) -> Features:
        """Takes features apart.

        Raises:
            TypeError: there is no tensor in ``features``.
            ValueError: no tensor in it requires grad.
        """
        leaves, structure = pytree.tree_flatten(features)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(
                f"features: {caller} expected a tensor or a pytree of tensors, found {type(features).__name__} without one."
            )
        differentiable = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not differentiable:
            raise ValueError(
                f"features: {caller} expected features that require grad, found none: the trunk is frozen, was run under "
                "no_grad, or its output was detached. Train the trunk, or call .eval() on the aggregator to pass features through."
            )
        return cls(leaves, structure, differentiable)

    @property
    def tensors(self) -> list[Tensor]:
        """The differentiable leaves. [P]"""
        return [self.leaves[k] for k in self.differentiable]

    def rebuild(self, tensors: tuple[Tensor, ...] | list[Tensor]) -> Any:
        """The pytree with its differentiable leaves replaced."""
        leaves = list(self.leaves)
        for k, tensor in zip(self.differentiable, tensors, strict=True):
            leaves[k] = tensor
        return pytree.tree_unflatten(leaves, self.structure)


def passes_through(training: bool) -> bool:
    """Whether features go to the heads as they are: no gradient will come back, or none should be changed."""
    return not training or not torch.is_grad_enabled()
