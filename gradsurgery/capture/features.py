"""Features: a tensor, or any pytree of tensors such as an FPN's dict; only its differentiable leaves take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .gradients import DTYPES


@dataclass(frozen=True)
class Features:
    """The leaves of a pytree, and the tensors among them that carry gradients.

    A tensor that stands in several places counts once, or a conflict between tasks that use different places would go unseen.
    """

    leaves: list[Any]
    structure: pytree.TreeSpec
    tensors: list[Tensor]  # [P]
    places: dict[int, int]  # position among the leaves -> in ``tensors``

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
        tensors: list[Tensor] = []
        places: dict[int, int] = {}
        for k, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                place = next((p for p, tensor in enumerate(tensors) if tensor is leaf), None)
                if place is None:
                    _check(leaf, tensors[0] if tensors else leaf, caller)
                    place = len(tensors)
                    tensors.append(leaf)
                places[k] = place
        dtypes = {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}
        if not any(dtype.is_floating_point or dtype.is_complex for dtype in dtypes):
            raise TypeError(f"features: {caller} expected floating-point tensors, found only {', '.join(map(str, dtypes))}.")
        if not tensors:
            raise ValueError(
                f"features: {caller} expected features that require grad, found none: the trunk is frozen, was run under "
                "no_grad, or its output was detached. Train the trunk, or call .eval() on the aggregator to pass features through."
            )
        return cls(leaves, structure, tensors, places)

    @property
    def paths(self) -> list[str]:
        """The key paths of ``tensors``, where each stands first; "features" for a tensor by itself. [P]"""
        tree = pytree.tree_unflatten(self.leaves, self.structure)
        paths = [pytree.keystr(path) or "features" for path, _ in pytree.tree_flatten_with_path(tree)[0]]
        first = {p: paths[k] for k, p in reversed(self.places.items())}
        return [first[p] for p in range(len(self.tensors))]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The pytree with ``tensors`` [P] in the places of its own."""
        leaves = list(self.leaves)
        for k, p in self.places.items():
            leaves[k] = tensors[p]
        return pytree.tree_unflatten(leaves, self.structure)

    def rebuild_each(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """``rebuild`` for each of T tasks, from tensors [T*P]."""
        P = len(self.tensors)
        return tuple(self.rebuild(tensors[k : k + P]) for k in range(0, len(tensors), P))


def _check(leaf: Tensor, first: Tensor, caller: str) -> None:
    if leaf.dtype not in DTYPES or leaf.layout is not torch.strided:
        raise TypeError(
            f"features: {caller} expected dense float64, float32, bfloat16 or float16 tensors, found {leaf.dtype}, {leaf.layout}."
        )
    if leaf.device != first.device:
        raise ValueError(f"features: {caller} expected all tensors on one device, found {first.device} and {leaf.device}.")


def passes_through(training: bool) -> bool:
    """Whether features go to the heads as they are: no gradient will come back, or none should be changed."""
    return not training or not torch.is_grad_enabled()
