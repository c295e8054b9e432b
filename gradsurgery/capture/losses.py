"""The tasks' losses, for methods that ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

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
        return losses.detach().to(device, torch.float64)
    if isinstance(losses, (str, Mapping)) or not isinstance(losses, Sequence):
        raise TypeError(f"losses: expected a tensor [T] or a sequence with one loss a task, found {type(losses).__name__}.")
    if len(losses) != tasks:
        raise ValueError(f"losses: expected {tasks}, one a task, found {len(losses)}.")
    return torch.stack([scalar_loss(loss, f"losses[{t}]").to(device) for t, loss in enumerate(losses)])


def scalar_loss(loss: Tensor | float | None, name: str) -> Tensor:
    """One loss without graph, NaN for None. [] float64

    Raises:
        TypeError: it is no scalar.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(()).to(torch.float64)
    if loss is None or (isinstance(loss, (int, float)) and not isinstance(loss, bool)):
        return torch.tensor(math.nan if loss is None else float(loss), dtype=torch.float64, device="cpu")
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"{name}: expected a scalar, found {found}; reduce it (.mean()) first.")
