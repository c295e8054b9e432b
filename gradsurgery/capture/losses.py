"""The tasks' losses, for methods that ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

LossesLike: TypeAlias = Tensor | Sequence[Tensor | float | None]
"""One number a task: a tensor [T], or a sequence of scalars, None for an absent task."""


def losses_tensor(losses: LossesLike | None, tasks: int, device: torch.device) -> Tensor | None:
    """The losses without graph, NaN for absent tasks; None for None. [T] float64

    Raises:
        TypeError, ValueError: an entry is no scalar, or their number is not that of the tasks.
    """
    if losses is None:
        return None
    if isinstance(losses, Tensor):
        if losses.shape != (tasks,):
            raise ValueError(f"losses: expected shape [{tasks}], one loss a task, found {list(losses.shape)}.")
        return _moved(losses.detach(), device)
    if isinstance(losses, (str, Mapping)) or not isinstance(losses, Sequence):
        raise TypeError(f"losses: expected a tensor [T] or a sequence with one loss a task, found {type(losses).__name__}.")
    if len(losses) != tasks:
        raise ValueError(f"losses: expected {tasks}, one a task, found {len(losses)}.")
    return stacked([scalar_loss(loss, f"losses[{t}]") for t, loss in enumerate(losses)], device)


def stacked(losses: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """What ``scalar_loss`` returned for each task, brought to one device without waiting for it. [T] float64"""
    return torch.stack(
        [
            _moved(loss, device) if isinstance(loss, Tensor) else torch.full((), loss, dtype=torch.float64, device=device)
            for loss in losses
        ]
    )


def _moved(losses: Tensor, device: torch.device) -> Tensor:
    """To the device in float64. From the host the host goes on at once; to the host it has to wait for the values."""
    return losses.to(device, torch.float64, non_blocking=losses.device.type == "cpu")


def scalar_loss(loss: Tensor | float | None, name: str) -> Tensor | float:
    """One loss without graph: a tensor [] on its device, or a number that still is on none; NaN for None.

    Raises:
        TypeError: it is no scalar.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(())
    if loss is None or (isinstance(loss, (int, float)) and not isinstance(loss, bool)):
        return math.nan if loss is None else float(loss)
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"{name}: expected a scalar, found {found}; reduce it (.mean()) first.")


def local(numbers: Tensor) -> Tensor | None:
    """As a plain tensor: of a DTensor that every rank has whole, this rank's copy; None of another, which would take messages."""
    placements: Any = getattr(numbers, "placements", None)
    if placements is None:
        return numbers
    whole: Tensor | None = numbers.to_local() if all(p.is_replicate() for p in placements) else None  # type: ignore[attr-defined]
    return whole
