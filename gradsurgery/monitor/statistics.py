"""What a step of surgery did, read from K and w alone, and only when asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery.methods.preference import beside

from .scalars import scalars
from .transfer import Numbers, Transfer


class Host(NamedTuple):
    """What came to the host: K, w, the status and the Gram matrix of what was combined, as far as there are any; and the losses."""

    gram: Numbers | None
    weights: Numbers | None
    status: Numbers | None
    combined: Numbers | None
    losses: tuple[float | None, ...]


class SolverStatus(NamedTuple):
    """What a solver said of its weights.

    Attributes:
        converged: to rounding, or to the errors that a K with negative curvature shows; False where the weights are the best found.
        stationary: some convex combination of the gradients is zero to rounding: no direction improves all tasks. None where the
            solver did not examine it.
        rank: of K to rounding, where the solver needs it; -1 where it does not.
        iterations: steps of the solver.
    """

    converged: bool
    stationary: bool | None
    rank: int
    iterations: int


@dataclass(frozen=True)
class Statistics:
    """One step of a ``GradientAggregator``.

    Nothing is computed, and no device is waited for, until an attribute is read; then K, w and the losses come to the host together
    once.
    A method that treats every coordinate by itself has no weights, and no K unless it is asked for (``diagnostics=True``): what
    needs them raises RuntimeError, and ``scalars`` leaves it out.

    Attributes:
        step: counted from 0 over the aggregator's life (it is part of ``state_dict``).
        tasks: their names. [T]
        present: which tasks had a gradient. [T]
        groups: the groups' names, where surgery is done group by group (the samples' numbers, where it is done by sample); empty
            for one group of all. [G]
    """

    step: int
    tasks: tuple[str, ...]
    present: tuple[bool, ...]
    _gram: Tensor | None
    _weights: Tensor | None
    _status: Tensor | None = None
    groups: tuple[str, ...] = ()
    _combined: Tensor | None = None  # the Gram matrix of what w combines, where that is not the gradients

    _losses: tuple[Tensor | float | None, ...] = ()  # those told, by task

    @cached_property
    def _host(self) -> Host:
        return self._received(Transfer(self.parts()).wait())

    def parts(self) -> list[Tensor]:
        """K, w and what else lies on a device, for whoever brings those of several steps to the host at once."""
        found = (self._gram, self._weights, self._status, self._combined, *self._losses)
        return [part for part in found if isinstance(part, Tensor)]

    def keep(self, numbers: Sequence[Numbers]) -> None:
        """Takes what ``parts`` came to on the host, for all that is read from now on."""
        self.__dict__["_host"] = self._received(numbers)

    def _received(self, numbers: Sequence[Numbers]) -> Host:
        come = iter(numbers)
        K, w, status, combined = (
            None if part is None else next(come) for part in (self._gram, self._weights, self._status, self._combined)
        )
        losses = tuple(float(next(come)) if isinstance(loss, Tensor) else loss for loss in self._losses)
        return Host(K, w, status, combined, losses)

    @property
    def _host_gram(self) -> Tensor:
        gram = self._host.gram
        if gram is None:
            raise RuntimeError(
                "statistics: no K was computed in this step: the method treats every coordinate by itself (ask for K with "
                "GradientAggregator(..., diagnostics=True), at the cost of a second read of the gradients), or weights of an "
                "earlier step served again (every=), or one task was there alone. Measure .grad in such a step."
            )
        return torch.from_numpy(gram)

    @property
    def group_grams(self) -> Tensor:
        """K of each group; one group of all where there are none. [G, T, T] float64, on the CPU"""
        gram = self._host_gram
        return gram if gram.dim() == 3 else gram[None]

    @property
    def gram(self) -> Tensor:
        """K_ij = <g_i, g_j> of the gradients as they arrived, over all groups; rows of absent tasks are zero.

        [T, T] float64, on the CPU
        """
        gram = self._host_gram
        return gram if gram.dim() == 2 else gram.sum(0)

    @property
    def weights(self) -> Tensor:
        """w, with 0 for absent tasks: the trunk received sum_t w_t g_t. [T], or [G, T] with groups, float64, on the CPU"""
        weights = self._host.weights
        if weights is None:
            raise RuntimeError("statistics: the method treats every coordinate by itself and has no weights.")
        return self._present_only(torch.from_numpy(weights))

    @property
    def device_weights(self) -> Tensor | None:
        """``weights`` where they were computed, without waiting for the device; None where there are none. [T] or [G, T] float64"""
        return None if self._weights is None else self._present_only(self._weights)

    @property
    def status(self) -> SolverStatus | None:
        """What the solver said, over all groups the worst; None for a method without solver."""
        if self._host.status is None:
            return None
        said = self._host.status.reshape(-1, 4)
        stationary = True if bool((said[:, 1] == 1).any()) else None if bool((said[:, 1] < 0).any()) else False
        return SolverStatus(bool((said[:, 0] == 1).all()), stationary, int(said[:, 2].min()), int(said[:, 3].max()))

    def _present_only(self, w: Tensor) -> Tensor:
        return w if all(self.present) else torch.where(beside(w, self.present) > 0, w, 0.0)

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

    @cached_property
    def similarity(self) -> Tensor:
        """2 |g_i| |g_j| / (|g_i|² + |g_j|²): 1 for equal lengths, near 0 where one is nothing; NaN for two zeros. [T, T]

        The gradient magnitude similarity of Yu et al., NeurIPS 2020 (arXiv:2001.06782), definition 2.
        """
        squares = self.norms.square()
        return 2 * torch.outer(self.norms, self.norms) / (squares[:, None] + squares[None])

    @property
    def condition(self) -> float:
        """σ_max / σ_min of the gradients of the tasks present, side by side; infinite where they are dependent to rounding.

        The condition number that Aligned-MTL brings to 1 (Senushkin et al., CVPR 2023, arXiv:2305.19000).
        """
        here = [t for t, present in enumerate(self.present) if present]
        if self.nonfinite or not here:
            return math.nan
        values = torch.linalg.eigvalsh(self.gram[here][:, here])  # ascending
        rounding = len(here) * torch.finfo(torch.float64).eps * values[-1]
        return math.inf if values[0] <= rounding else float((values[-1] / values[0]).sqrt())

    @property
    def task_cosines(self) -> Tensor:
        """cos(g_t, out): how far the step serves each task; NaN for a zero or absent one. [T]"""
        return self.alignment / (self.norms * self.norm)

    @property
    def mean_cosine(self) -> float:
        """cos(out, mean_t g_t): 1 where surgery changed a length at most."""
        total = self.gram.sum()  # |sum_t g_t|², absent ones being zero
        return float(self.alignment.sum() / (self.norm * total.clamp_min(0).sqrt()))

    @property
    def pairs(self) -> int:
        """The number of pairs of tasks that were present."""
        return math.comb(sum(self.present), 2)

    @property
    def alignment(self) -> Tensor:
        """<g_t, out> = (K w)_t: negative where the step increases a task's loss to first order. [T]

        Raises:
            RuntimeError: the method combines other tensors than the gradients, such as averages of them.
        """
        if self._combined is not None:
            raise RuntimeError(
                "statistics: the method combines averages of the gradients rather than the gradients, whose products with the "
                "result are not known."
            )
        return (self.group_grams @ self.weights.reshape(-1, len(self.tasks), 1)).sum(0)[:, 0]

    @property
    def norm(self) -> float:
        """|out| = sqrt(w^T K w), with K of what w combines."""
        T, combined = len(self.tasks), self._host.combined
        w = self.weights.reshape(-1, T)
        grams = self.group_grams if combined is None else torch.from_numpy(combined).reshape(-1, T, T)
        return float(torch.einsum("gi,gij,gj->", w, grams, w).clamp_min(0).sqrt())

    @property
    def nonfinite(self) -> bool:
        """Whether some gradient was infinite or NaN; the trunk then received NaN, so that a gradient scaler skips the step."""
        return not bool(self.gram.isfinite().all())

    @property
    def nonfinite_tasks(self) -> tuple[str, ...]:
        """The tasks whose gradients were infinite or NaN."""
        return tuple(task for task, fine in zip(self.tasks, self.gram.diagonal().isfinite().tolist(), strict=True) if not fine)

    @property
    def absent(self) -> int:
        """The number of known tasks that had no gradient."""
        return len(self.present) - sum(self.present)

    @property
    def losses(self) -> Tensor:
        """What ``observe`` or ``backward(losses)`` was told, NaN where no loss was; of several processes this one's.

        [T] float64, on the CPU
        """
        told = self._host.losses or (None,) * len(self.tasks)
        return torch.tensor([math.nan if loss is None else loss for loss in told], dtype=torch.float64)

    # --- by group -----------------------------------------------------------------------------------------------------------

    @cached_property
    def group_norms(self) -> Tensor:
        """|g_t| at each group; one group of all where there are none. [G, T]"""
        return self.group_grams.diagonal(dim1=1, dim2=2).sqrt()

    @cached_property
    def group_cosines(self) -> Tensor:
        """cos(g_i, g_j) at each group; NaN where a gradient is zero or absent. [G, T, T]"""
        return self.group_grams / (self.group_norms[:, :, None] * self.group_norms[:, None])

    @property
    def group_conflicts(self) -> Tensor:
        """The number of pairs of tasks with <g_i, g_j> < 0 at each group. [G] int64"""
        return (self.group_grams.triu(1) < 0).sum((1, 2))

    def scalars(self) -> dict[str, float]:
        """A flat dictionary for loggers.

        Keys: ``norm/a``, ``weight/a`` (the mean over groups), ``cosine/a-b``, ``conflicts``, ``conflict_rate``, ``nonfinite``,
        ``norm`` of the result, and of a solver ``converged``, and ``stationary`` where it examined that; ``absent``, and
        ``loss/a`` of a loss that was told. A step without K has no norms, cosines and conflicts.
        """
        return scalars([self])[0]
