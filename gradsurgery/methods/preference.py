"""One number a task, as an option: checked once, and brought beside K without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .registry import Step, present_count


def checked_numbers(values: Sequence[float] | Tensor, name: str, low: float = 0.0, high: float = math.inf) -> tuple[float, ...]:
    """The numbers as a tuple.

    Raises:
        TypeError: no tensor, tuple or list of numbers.
        ValueError: none at all, or one that is not finite or outside [low, high].
    """
    if isinstance(values, Tensor):
        if values.dim() != 1:
            raise ValueError(f"{name}: expected one number a task, found a tensor of shape {list(values.shape)}.")
        values = values.tolist()
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name}: expected a tensor, tuple or list with one number a task, found {type(values).__name__}.")
    for t, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}[{t}]: expected a number, found {type(value).__name__}.")
        if not (math.isfinite(value) and low <= value <= high):
            expected = f"a number in [{low:g}, {high:g}]" if high < math.inf else f"a finite number >= {low:g}"
            raise ValueError(f"{name}[{t}]: expected {expected}, found {value}.")
    if not values:
        raise ValueError(f"{name}: expected one number a task, found none.")
    return tuple(float(value) for value in values)


def check_count(values: Sequence[float] | Tensor, name: str, tasks: int) -> None:
    """Raises unless there is one number for each of ``tasks`` tasks."""
    if len(values) != tasks:
        raise ValueError(f"{name}: expected {tasks} numbers, one a task, found {len(values)}.")


def beside(gram: Tensor, values: Sequence[float]) -> Tensor:
    """The numbers as a float64 tensor on K's device, filled in place: copying them there would wait. [T]"""
    result = torch.empty(len(values), dtype=torch.float64, device=gram.device)
    for t, value in enumerate(values):
        result[t].fill_(value)
    return result


def is_complete(step: Step) -> bool:
    """Whether every task has a gradient in this step."""
    return step.present is None or all(step.present)


def equal_shares(tasks: int, step: Step) -> list[float]:
    """1 / (number of tasks present) for those, 0 for the others. [T]"""
    share = 1.0 / present_count(tasks, step)
    return [share if step.present is None or step.present[t] else 0.0 for t in range(tasks)]
