"""One number a task, as an option or of a step: checked once, and brought beside K without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.options import check_number

from .registry import Step, present_count


def checked_numbers(
    name: str, values: Sequence[float] | Tensor, *, at_least: float | None = None, at_most: float | None = None
) -> tuple[float, ...]:
    """The numbers as a tuple.

    Raises:
        TypeError: no tensor, tuple or list of numbers.
        ValueError: none at all, or one that is not finite or out of bounds.
    """
    if isinstance(values, Tensor):
        if values.dim() != 1:
            raise ValueError(f"{name}: expected one number a task, found a tensor of shape {list(values.shape)}.")
        values = values.tolist()
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name}: expected a tensor, tuple or list with one number a task, found {type(values).__name__}.")
    for t, value in enumerate(values):
        check_number(f"{name}[{t}]", value, at_least=at_least, at_most=at_most)
    if not values:
        raise ValueError(f"{name}: expected one number a task, found none.")
    return tuple(float(value) for value in values)


def check_count(name: str, values: Sequence[float] | Tensor, tasks: int) -> None:
    """Raises unless there is one number for each of ``tasks`` tasks."""
    if len(values) != tasks:
        raise ValueError(f"{name}: expected {tasks} numbers, one a task, found {len(values)}.")


def given(name: str, values: Sequence[float] | Tensor | str | None, gram: Tensor) -> Tensor | None:
    """An option's numbers beside K [..., T, T]; None for an option that is no numbers: None, or a word. [T]

    Raises:
        ValueError: there are more or fewer than tasks.
    """
    if values is None or isinstance(values, str):
        return None
    check_count(name, values, gram.shape[-1])
    return beside(gram, values)  # type: ignore[arg-type]  # a tuple of numbers once ``checked_numbers`` has seen it


def beside(gram: Tensor, values: Sequence[float]) -> Tensor:
    """The numbers as a float64 tensor on K's device, filled in place: copying them there would wait. [T]"""
    result = torch.empty(len(values), dtype=torch.float64, device=gram.device)
    for t, value in enumerate(values):
        result[t].fill_(value)
    return result


def presence(step: Step, like: Tensor) -> Tensor | None:
    """1 for the tasks present and 0 for others, beside a tensor; None where all are. [T] float64"""
    if step.present is None or is_complete(step):
        return None
    return beside(like, [float(present) for present in step.present])


def is_complete(step: Step) -> bool:
    """Whether every task has a gradient in this step."""
    return step.present is None or all(step.present)


def equal_shares(tasks: int, step: Step) -> list[float]:
    """1 / (number of tasks present) for those, 0 for the others. [T]"""
    share = 1.0 / present_count(tasks, step)
    return [share if step.present is None or step.present[t] else 0.0 for t in range(tasks)]
