"""Smooth Tchebycheff scalarisation: a smooth maximum of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.options import check_integer, check_number

from .base import PerTask
from .epochs import EpochBalancer
from .registry import register


@register(
    "stch",
    paper="Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024 (arXiv:2402.19078)",
    properties=("counts_epochs", "permutation_equivariant"),
)
class SmoothTchebycheff(EpochBalancer):
    """mu log sum_t exp(lambda_t (L_t - z_t) / mu), hence w_t = lambda_t softmax(lambda (L - z) / mu)_t.

    Between max_t lambda_t (L_t - z_t) and that plus mu log T; the smaller mu is, the closer to the maximum. Minimising it can
    reach every Pareto-optimal point, also where the front is not convex.

    Losses in different units need ``weights`` that undo these, or ``warmup``, as in the authors' multi-task code: in the first
    ``warmup`` epochs the loss is sum_t log L_t, and afterwards log(L_t / nadir_t) takes the place of L_t, with nadir_t the task's
    mean loss in the last of these epochs in which it was seen. The losses have to be positive then, and a task that the warm-up did
    not see gives NaN. The authors' loss is T times that of ``weights=1``.

    Args:
        tasks: the tasks' names, or their number.
        mu: smoothing, in the unit of lambda L; positive.
        weights: the preferences lambda, for all tasks or one each, not negative; 1/T by default.
        reference: the ideal losses z, for all tasks or one each; 0 by default.
        warmup: epochs of the sum of logarithms, or None; the loop says their end with ``balancer.end_epoch()``.
        process_group: as for every ``Balancer``.
    """

    _preferences: Tensor
    _reference: Tensor
    _nadir: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | int,
        *,
        mu: float = 1.0,
        weights: PerTask | None = None,
        reference: PerTask | None = None,
        warmup: int | None = None,
        process_group: Any = None,
    ) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(mu=mu, weights=weights, reference=reference, warmup=warmup)
        check_number("mu", mu, above=0)
        if warmup is not None:
            check_integer("warmup", warmup, at_least=1)
        preferences = self._each("weights", 1 / len(self.tasks) if weights is None else weights, at_least=0)
        ideal = self._each("reference", 0.0 if reference is None else reference)
        self.mu, self.warmup = mu, warmup
        self.epoch = 0  # as far as the warm-up counts
        self.register_buffer("_preferences", torch.tensor(preferences, dtype=torch.float64), persistent=False)
        self.register_buffer("_reference", torch.tensor(ideal, dtype=torch.float64), persistent=False)
        self.register_buffer("_nadir", torch.full((len(self.tasks),), torch.nan, dtype=torch.float64))

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        preferences, reference = self._taken(self._preferences, here), self._taken(self._reference, here)
        if self.warmup is None:
            exponents = preferences * (losses - reference) / self.mu
            return self.mu * exponents.logsumexp(0), preferences * exponents.detach().softmax(0)
        if self.epoch < self.warmup:
            if self._learning:
                self._enter(losses, here)
            return losses.log().sum(), 1 / losses.detach()
        exponents = preferences * ((losses / self._taken(self._nadir, here)).log() - reference) / self.mu
        return self.mu * exponents.logsumexp(0), preferences * exponents.detach().softmax(0) / losses.detach()

    def end_epoch(self) -> None:
        """The warm-up has come an epoch further; without one, or after it, nothing happens."""
        if self.warmup is None or self.epoch >= self.warmup:
            return
        means = self._close()
        self._nadir = torch.where(means.isnan(), self._nadir, means)
        self.epoch += 1

    def get_extra_state(self) -> dict[str, Any]:
        """How far the warm-up has got."""
        return super().get_extra_state() | {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        self.epoch = state["epoch"]

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, mu={self.mu}, warmup={self.warmup}"
