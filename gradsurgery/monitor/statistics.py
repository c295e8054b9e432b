"""What a step of surgery did, read from K and w alone, and only when asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """One step of a ``GradientAggregator``.

    Nothing is computed, and no device is waited for, until an attribute is read; then K and w come to the host together once.

    Attributes:
        step: counted from 0 over the aggregator's life (it is part of ``state_dict``).
        tasks: their names. [T]
        present: which tasks had a gradient. [T]
    """

    step: int
    tasks: tuple[str, ...]
    present: tuple[bool, ...]
    _gram: Tensor
    _weights: Tensor

    @cached_property
    def _host(self) -> tuple[Tensor, Tensor]:
        both = torch.cat([self._gram, self._weights[None]]).cpu()  # one transfer
        return both[:-1], both[-1]

    @property
    def gram(self) -> Tensor:
        """K_ij = <g_i, g_j>; rows of absent tasks are zero. [T, T] float64, on the CPU"""
        return self._host[0]

    @property
    def weights(self) -> Tensor:
        """w, with 0 for absent tasks: the trunk received sum_t w_t g_t. [T] float64, on the CPU"""
        return self._present_only(self._host[1])

    @property
    def device_weights(self) -> Tensor:
        """``weights`` where they were computed, without waiting for the device. [T] float64"""
        return self._present_only(self._weights)

    def _present_only(self, w: Tensor) -> Tensor:
        return w if all(self.present) else torch.where(torch.tensor(self.present).to(w.device), w, 0.0)

    @cached_property
    def norms(self) -> Tensor:
        """|g_t| as it arrived, times the loss scale under a GradScaler. [T]"""
        return self.gram.diagonal().sqrt()

    @cached_property
    def cosines(self) -> Tensor:
        """cos(g_i, g_j); NaN where a gradient is zero or absent. [T, T]"""
        return self.gram / torch.outer(self.norms, self.norms)

    @property
    def conflicts(self) -> int:
        """The number of pairs of tasks with <g_i, g_j> < 0."""
        return int((self.gram.triu(1) < 0).sum())

    @property
    def pairs(self) -> int:
        """The number of pairs of tasks that were present."""
        return math.comb(sum(self.present), 2)

    @property
    def alignment(self) -> Tensor:
        """<g_t, out> = (K w)_t: negative where the step increases a task's loss to first order. [T]"""
        return self.gram @ self.weights

    @property
    def norm(self) -> float:
        """|out| = sqrt(w^T K w)."""
        return float((self.weights @ self.gram @ self.weights).clamp_min(0).sqrt())

    @property
    def nonfinite(self) -> bool:
        """Whether some gradient was infinite or NaN; the trunk then received NaN, so that a gradient scaler skips the step."""
        return not bool(self.gram.isfinite().all())

    def scalars(self) -> dict[str, float]:
        """A flat dictionary for loggers.

        Keys: ``norm/a``, ``weight/a``, ``cosine/a-b``, ``conflicts``, ``conflict_rate``, ``nonfinite``, and ``norm`` of the result.
        """
        here = [t for t, present in enumerate(self.present) if present]
        result = {f"norm/{self.tasks[t]}": float(self.norms[t]) for t in here}
        result |= {f"weight/{self.tasks[t]}": float(self.weights[t]) for t in here}
        for k, i in enumerate(here):
            result |= {f"cosine/{self.tasks[i]}-{self.tasks[j]}": float(self.cosines[i, j]) for j in here[k + 1 :]}
        result["conflicts"] = float(self.conflicts)
        result["conflict_rate"] = self.conflicts / self.pairs if self.pairs else 0.0
        result["nonfinite"] = float(self.nonfinite)
        result["norm"] = self.norm
        return result
