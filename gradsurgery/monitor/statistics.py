"""What a step of surgery did, read from K and w alone, and only when asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class SolverStatus(NamedTuple):
    """What a solver said of its weights.

    Attributes:
        converged: False where its cap on iterations was met first, and the weights are the best so far.
        stationary: some convex combination of the gradients is zero to rounding: no direction improves all tasks.
        rank: of K to rounding, where the solver needs it; -1 where it does not.
        iterations: steps of the solver.
    """

    converged: bool
    stationary: bool
    rank: int
    iterations: int


@dataclass(frozen=True)
class Statistics:
    """One step of a ``GradientAggregator``.

    Nothing is computed, and no device is waited for, until an attribute is read; then K and w come to the host together once.

    Attributes:
        step: counted from 0 over the aggregator's life (it is part of ``state_dict``).
        tasks: their names. [T]
        present: which tasks had a gradient. [T]
        groups: the groups' names, where surgery is done group by group; empty for one group of all. [G]
    """

    step: int
    tasks: tuple[str, ...]
    present: tuple[bool, ...]
    _gram: Tensor
    _weights: Tensor
    _status: Tensor | None = None
    groups: tuple[str, ...] = ()

    @cached_property
    def _host(self) -> tuple[Tensor, Tensor, Tensor]:
        status = self._weights.new_zeros(0) if self._status is None else self._status
        parts = (self._gram, self._weights, status)
        flat = torch.cat([part.reshape(-1) for part in parts]).cpu()  # one transfer
        gram, weights, status = flat.split([part.numel() for part in parts])
        return gram.reshape(self._gram.shape), weights.reshape(self._weights.shape), status.reshape(-1, 4)

    @property
    def group_grams(self) -> Tensor:
        """K of each group; one group of all where there are none. [G, T, T] float64, on the CPU"""
        gram = self._host[0]
        return gram if gram.dim() == 3 else gram[None]

    @property
    def gram(self) -> Tensor:
        """K_ij = <g_i, g_j> over all groups; rows of absent tasks are zero. [T, T] float64, on the CPU"""
        gram = self._host[0]
        return gram if gram.dim() == 2 else gram.sum(0)

    @property
    def weights(self) -> Tensor:
        """w, with 0 for absent tasks: the trunk received sum_t w_t g_t. [T], or [G, T] with groups, float64, on the CPU"""
        return self._present_only(self._host[1])

    @property
    def device_weights(self) -> Tensor:
        """``weights`` where they were computed, without waiting for the device. [T] or [G, T] float64"""
        return self._present_only(self._weights)

    @property
    def status(self) -> SolverStatus | None:
        """What the solver said, over all groups the worst; None for a method without solver."""
        said = self._host[2]
        if not len(said):
            return None
        return SolverStatus(
            bool((said[:, 0] == 1).all()), bool((said[:, 1] == 1).any()), int(said[:, 2].min()), int(said[:, 3].max())
        )

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
        return (self.group_grams @ self.weights.reshape(-1, len(self.tasks), 1)).sum(0)[:, 0]

    @property
    def norm(self) -> float:
        """|out| = sqrt(w^T K w)."""
        w = self.weights.reshape(-1, len(self.tasks))
        return float(torch.einsum("gi,gij,gj->", w, self.group_grams, w).clamp_min(0).sqrt())

    @property
    def nonfinite(self) -> bool:
        """Whether some gradient was infinite or NaN; the trunk then received NaN, so that a gradient scaler skips the step."""
        return not bool(self.gram.isfinite().all())

    def scalars(self) -> dict[str, float]:
        """A flat dictionary for loggers.

        Keys: ``norm/a``, ``weight/a`` (the mean over groups), ``cosine/a-b``, ``conflicts``, ``conflict_rate``, ``nonfinite``,
        ``norm`` of the result, and of a solver ``converged``, ``stationary``.
        """
        here = [t for t, present in enumerate(self.present) if present]
        mean_weights = self.weights.reshape(-1, len(self.tasks)).mean(0)
        result = {f"norm/{self.tasks[t]}": float(self.norms[t]) for t in here}
        result |= {f"weight/{self.tasks[t]}": float(mean_weights[t]) for t in here}
        for k, i in enumerate(here):
            result |= {f"cosine/{self.tasks[i]}-{self.tasks[j]}": float(self.cosines[i, j]) for j in here[k + 1 :]}
        result["conflicts"] = float(self.conflicts)
        result["conflict_rate"] = self.conflicts / self.pairs if self.pairs else 0.0
        result["nonfinite"] = float(self.nonfinite)
        result["norm"] = self.norm
        if self.status is not None:
            result["converged"], result["stationary"] = float(self.status.converged), float(self.status.stationary)
        return result
