"""What the methods share that treat every coordinate by itself: one pass over the gradients, no K and no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_bool

from .registry import NO_STEP, Method, Solution, Step


@dataclass(frozen=True, eq=False)
class CoordinatewiseMethod(Method):
    """out_k = rule(g_1k, …, g_nk) at every coordinate k, over the tasks that have a gradient at its position.

    Options:
        diagnostics: also compute K, a second read of the gradients, for ``statistics()`` and for balancers that listen.
    """

    rule: ClassVar[str]
    diagnostics: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_bool("diagnostics", self.diagnostics)

    def rule_options(self, grads: TaskGradients) -> list[float]:
        """The rule's numbers, as ``ops/schema.py`` lists them, for these gradients."""
        return []

    def random_numbers(self, numel: int, device: torch.device, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """(uniform, key), of which a rule that draws has one, for N coordinates."""
        return None, None

    @property
    def finds_gram(self) -> bool:
        return self.diagnostics

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        name = self.spec.name
        raise ValueError(
            f"method: {name!r} treats every coordinate by itself and has no weights, which K could tell. Pass the gradients to "
            f"gradsurgery.aggregate(grads, {name!r})."
        )

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        options = self.rule_options(grads)
        uniform, key = self.random_numbers(sum(target.numel() for target in out), grads.device, step)
        K = ops.gram(grads.entries, grads.tasks, grads.stacked, list(groups) or None) if self.diagnostics else None
        ops.coordinatewise_(out, grads.entries, grads.tasks, grads.stacked, self.rule, options, uniform, key, accumulate)
        return Solution(K, None)


def present_at_positions(grads: TaskGradients) -> list[int]:
    """How many tasks have a gradient at each position. [P]"""
    if grads.stacked:
        return [grads.tasks] * grads.pieces
    return [sum(g is not None for g in grads.entries[p :: grads.pieces]) for p in range(grads.pieces)]
