"""What the methods that multiply the gradients of two batches have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients

from .preference import presence
from .registry import NO_STEP, Solution, SolverMethod, Step


class CrossMethod(SolverMethod):
    """A method of the cross-Gram matrix A = J₁ J₂ᵀ of two batches' gradients, with w on the simplex as memory.

    ``aggregate(grads, ..., against=)`` takes the second batch's gradients and combines those of the first. Where there is only one
    batch (the forms at the boundary of trunk and heads, a call without ``against``) A = K of that batch: the single-batch variant,
    whose expectation is not that of the method. Absent tasks keep their w and weigh nothing.
    """

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        assert self.state_name is not None
        shape = (grads.tasks,) if groups == 1 else (groups, grads.tasks)
        return {self.state_name: torch.full(shape, 1.0 / grads.tasks, dtype=torch.float64, device=grads.device)}

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return presence(step, gram)

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        of_piece = list(groups) or None
        if step.against is None:
            K = A = ops.gram(grads.entries, grads.tasks, grads.stacked, of_piece)
        else:
            K, A = cross_gram(grads, step.against, of_piece)
        said = self.solve(A, step)
        assert said.weights is not None
        ops.combine_(out, grads.entries, said.weights, grads.stacked, accumulate, of_piece)
        return Solution(K, said.weights, said.status)


def cross_gram(grads: TaskGradients, against: TaskGradients, groups: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """K = J₁ J₁ᵀ and A = J₁ J₂ᵀ, blocks of the Gram matrix of both batches' rows, which are read once and never concatenated."""
    T = grads.tasks
    both = ops.gram([*grads.task_major(), *against.task_major()], 2 * T, False, groups)
    return both[..., :T, :T], both[..., :T, T:]
