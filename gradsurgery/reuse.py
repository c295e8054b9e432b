"""Weights that are found in one step and used again in the steps after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Served: TypeAlias = tuple[str, tuple[bool, ...], tuple[str, ...]]
"""What weights are for: gradients of which kind, which tasks are present [T], and the groups' names [G]."""


class Reuse:
    """The weights of the last step that found some, and for how many steps they have served.

    They are renewed after ``every`` steps, and whenever they would serve other tasks, groups or gradients. Weights that are not
    finite, of a step that a gradient scaler skips, are not kept: the last ones go on, and where there are none, weights of 1.

    Args:
        every: for how many steps weights are used.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._served = 0
        self._weights: Tensor | None = None
        self._serve: Served | None = None

    def take(self, serve: Served, device: torch.device) -> Tensor | None:
        """The weights of an earlier step [T] or [G, T], for one more step; None where they have to be renewed.

        Args:
            serve: what they would serve.
            device: where the gradients lie.

        Raises:
            RuntimeError: a CUDA graph is being captured, which would do the same in every step.
        """
        if self.every > 1 and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"every: expected 1 inside a CUDA graph, whose replays all do what the captured step did, found {self.every}."
            )
        if self._weights is None or self._served >= self.every or serve != self._serve:
            return None
        self._served += 1
        self._weights = self._weights.to(device)
        return self._weights

    def renew(self, weights: Tensor, serve: Served) -> None:
        """Keeps the weights of a step that found some."""
        if self.every == 1:
            return
        known = self._weights is not None and serve == self._serve and self._weights.shape == weights.shape
        last = self._weights if known else torch.ones_like(weights)
        assert last is not None
        self._weights = torch.where(weights.isfinite().all(), weights, last.to(weights.device))
        self._served, self._serve = 1, serve

    def state(self) -> dict[str, Any]:
        """What a ``state_dict`` holds of it."""
        return {"served": self._served, "weights": self._weights, "serve": self._serve}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what ``state`` returned; nothing of a run that kept no weights."""
        self._served, self._weights = int(state.get("served", 0)), state.get("weights")
        serve = state.get("serve")
        self._serve = None if serve is None else (serve[0], tuple(serve[1]), tuple(serve[2]))
