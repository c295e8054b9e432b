"""Form A: the boundary of trunk and heads as one autograd node. Forward: views. Backward: surgery on what comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .features import Features
from .gradients import TaskGradients
from .probe import is_probing

Surgery = Callable[[TaskGradients], list[Tensor | None]]
"""T gradients over P tensors -> one gradient over P tensors."""


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tasks: int, surgery: Surgery, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.tasks, ctx.surgery = tasks, surgery
        ctx.seen = set()
        ctx.set_materialize_grads(False)  # an absent task stays None instead of becoming a tensor of zeros
        return tuple(leaf.view_as(leaf) for _ in range(tasks) for leaf in leaves)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        gradients = TaskGradients(list(grads), ctx.tasks)
        if is_probing():
            return None, None, *_plain_sum(gradients)
        here = {t for t, present in enumerate(gradients.present) if present}
        if ctx.seen and not ctx.seen & here:
            raise RuntimeError(
                "split: the tasks' losses were propagated one by one, so no two gradients met and no surgery took place. Add the "
                "losses and call backward() once, or use detach(), whose heads are propagated one by one."
            )
        ctx.seen |= here
        return None, None, *ctx.surgery(gradients)


def _plain_sum(gradients: TaskGradients) -> list[Tensor | None]:
    P = gradients.pieces
    columns = ([g for g in gradients.entries[p::P] if g is not None] for p in range(P))
    return [torch.stack(column).sum(0) if column else None for column in columns]


def split(features: Features, tasks: int, surgery: Surgery) -> tuple[Any, ...]:
    """One view of the features a task; ``surgery`` runs when their gradients have come back."""
    views = _Boundary.apply(tasks, surgery, *features.tensors)
    P = len(features.tensors)
    return tuple(features.rebuild(views[t * P : (t + 1) * P]) for t in range(tasks))
