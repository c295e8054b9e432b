"""Means over the ranks: of the tasks' losses, and of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .ranks import Ranks


@torch.no_grad()
def mean_(values: Tensor, ranks: Ranks, what: str) -> Tensor:
    """The mean over the ranks, in place of ``values``; one all-reduce of them.

    Raises:
        RuntimeError: another rank did not come; it says ``what`` was exchanged.
    """
    with ranks.named("all_reduce", what):
        dist.all_reduce(values, group=ranks.group)
    return values.div_(ranks.size)


@torch.no_grad()
def mean_losses(losses: Sequence[Tensor | None], ranks: Ranks, device: torch.device) -> list[Tensor | None]:
    """The mean over the ranks of each task's loss, from one all-reduce of T doubles; None for a task that no rank has. [T]

    A rank that lacks a task counts with zero, as it does where gradients are averaged. It sends −0, and a rank that has the task +0
    for a loss of zero, so that a sum of −0 says that all lack it. This is read, which waits for the device, on a rank that lacks a
    task; the others know that all are there.

    Args:
        losses: of this rank, scalars; None for a task that it lacks. [T]
        ranks: that exchange them.
        device: where.
    """
    none = torch.full((), -0.0, dtype=torch.float64, device=device)
    sent = [none if loss is None else loss.to(device, torch.float64) + 0.0 for loss in losses]
    means = mean_(torch.stack(sent), ranks, f"of the losses ({len(sent)} doubles)")
    here = [True] * len(sent)
    if any(loss is None for loss in losses):
        here = (~(means.signbit() & (means == 0))).tolist()
    return [mean if present else None for mean, present in zip(means.unbind(), here, strict=True)]


class OfAllRanks(torch.autograd.Function):
    """The mean of the ranks' losses, with its gradient given to this rank's: gradients are averaged over the ranks afterwards."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, mean: Tensor) -> Tensor:
        """The mean, where the loss is. []"""
        ctx.like = loss.device, loss.dtype
        return mean.to(loss.device, copy=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """To the loss."""
        return grads[0].to(*ctx.like), None
