"""Form A: the boundary of trunk and heads as one autograd node. Forward: views. Backward: surgery on what comes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    def forward(ctx: Any, tasks: int, surgery: Surgery, unbound: bool, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.tasks, ctx.surgery = tasks, surgery
        ctx.seen = set()
        ctx.set_materialize_grads(False)  # an absent task stays None instead of becoming a tensor of zeros
        if unbound:
            columns = [leaf.expand(tasks, *leaf.shape).unbind() for leaf in leaves]
            return tuple(view for row in zip(*columns, strict=True) for view in row)
        return tuple(leaf.view_as(leaf) for _ in range(tasks) for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # autograd enables it for create_graph=True alone
            raise RuntimeError(
                "split: create_graph=True asks for a backward pass that can be differentiated, which surgery cannot be: its "
                "weights are constants of the step. Call backward() without it. A penalty on gradients may use those of the views "
                "that split returned (torch.autograd.grad(..., views, create_graph=True)), or features that do not go through "
                "split; in eval() the aggregator passes features and gradients through."
            )
        gradients = TaskGradients(list(grads), ctx.tasks)
        if is_probing():
            return None, None, None, *plain_sum(gradients)
        here = {t for t, present in enumerate(gradients.present) if present}
        if ctx.seen and not ctx.seen & here:
            raise RuntimeError(
                "split: the tasks' losses were propagated one by one, so no two gradients met and no surgery took place. Add the "
                "losses and call backward() once, or use detach(), whose heads are propagated one by one."
            )
        ctx.seen |= here
        return None, None, None, *ctx.surgery(gradients)


def plain_sum(gradients: TaskGradients) -> list[Tensor | None]:
    """What autograd would have made of the tasks' gradients without a boundary. [P]"""
    P = gradients.pieces
    columns = ([g for g in gradients.entries[p::P] if g is not None] for p in range(P))
    return [torch.stack(column).sum(0) if column else None for column in columns]


def boundary(tensors: Sequence[Tensor], tasks: int, surgery: Surgery, unbound: bool = False) -> tuple[Tensor, ...]:
    """A view of each of P tensors for each of T tasks; ``surgery`` runs when their gradients have come back. [T*P]

    ``unbound`` makes the views of a tensor by one operator, which costs time but tells a compiler that they belong together.
    """
    return _Boundary.apply(tasks, surgery, unbound, *tensors)  # type: ignore[no-any-return]


def split(features: Features, tasks: int, surgery: Surgery) -> tuple[Any, ...]:
    """One view of the features a task; ``surgery`` runs when their gradients have come back."""
    return features.rebuild_each(boundary(features.tensors, tasks, surgery))
