"""What every balancer shares: tasks, losses in two forms, and absent tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE_KEY

from gradsurgery.capture.tasks import task_names
from gradsurgery.options import check_number

Losses: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor | None]
"""A dict by task name, or a sequence in the order of the tasks; a missing name or a None is a task absent in this step."""

PerTask: TypeAlias = float | Mapping[str, float] | Sequence[float] | Tensor
"""One number for all tasks, or one each: a dict by task name, or a sequence or a tensor [T] in the order of the tasks."""


class Balancer(nn.Module):
    """Turns the tasks' losses into one scalar: ``balancer(losses).backward()``.

    Parameters a balancer learns are ordinary parameters: give ``balancer.parameters()`` to an optimizer. Everything it needs to go
    on is in ``state_dict()``.

    Args:
        tasks: the tasks' names, or their number.

    Raises:
        TypeError: tasks that are no such thing, or an option of the wrong type.
        ValueError: no task, a name twice, or a value that an option does not take.
    """

    def __init__(self, tasks: Sequence[str] | int) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] = tuple(task_names(tasks))

    @property
    def weights(self) -> Tensor:
        """The factor on each task's loss as it stands now, without graph. [T]"""
        raise NotImplementedError

    def terms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """The term of each task present in the balanced loss; their sum is the loss."""
        raise NotImplementedError

    def total(self, losses: dict[int, Tensor]) -> Tensor:
        """The balanced loss of the tasks present."""
        return torch.stack(list(self.terms(losses).values())).sum()

    def forward(self, losses: Losses) -> Tensor:
        """The balanced loss, a scalar.

        Args:
            losses: scalars, as a dict by name (tasks may be missing), or a sequence in the order of ``tasks`` (None for absent).
                Those in 16 bits are balanced in float32.

        Raises:
            TypeError, ValueError: an unknown name, a wrong number of losses, a loss that is no scalar tensor, or no loss at all.
        """
        return self.total(self._given(losses))

    def weighted(self, losses: Losses) -> dict[str, Tensor]:
        """The terms of ``forward``'s sum by task, for loops that propagate one head at a time."""
        return {self.tasks[t]: term for t, term in self.terms(self._given(losses)).items()}

    def _given(self, losses: Losses) -> dict[int, Tensor]:
        """The losses present, by position, checked."""
        if isinstance(losses, Mapping):
            unknown = sorted(set(losses) - set(self.tasks))
            if unknown:
                raise ValueError(f"losses: expected tasks among {', '.join(self.tasks)}, found {', '.join(map(str, unknown))}.")
            by_position = [losses.get(name) for name in self.tasks]
        elif isinstance(losses, Sequence):
            if len(losses) != len(self.tasks):
                raise ValueError(f"losses: expected {len(self.tasks)} ({', '.join(self.tasks)}), found {len(losses)}.")
            by_position = list(losses)
        else:
            raise TypeError(f"losses: expected a dict by task or a sequence, found {type(losses).__name__}.")
        given = {}
        for t, loss in enumerate(by_position):
            if loss is None:
                continue
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"losses[{self.tasks[t]!r}]: expected a scalar tensor, found {found}; reduce it (.mean()) first.")
            # float16 and bfloat16 would round the weights, and a sum of losses, to three digits.
            given[t] = loss.reshape(()).float() if loss.dtype in (torch.float16, torch.bfloat16) else loss.reshape(())
        if not given:
            raise ValueError("losses: expected the loss of at least one task, found none.")
        return given

    @property
    def _learning(self) -> bool:
        """Whether a call may change the balancer: in training, where a backward pass may follow."""
        return self.training and torch.is_grad_enabled()

    def _each(self, name: str, value: PerTask, *, above: float | None = None, at_least: float | None = None) -> list[float]:
        """``value`` of the option ``name`` task by task.

        Raises:
            TypeError: neither a number nor several, or one of them is none.
            ValueError: not one for every task, or one that is not finite or out of bounds.
        """
        T = len(self.tasks)
        if isinstance(value, Tensor) and value.dim() <= 1:
            value = value.tolist()
        found: object = value
        if isinstance(found, str) or not isinstance(found, (int, float, Mapping, Sequence, Tensor)):
            raise TypeError(f"{name}: expected one number or {T} ({', '.join(self.tasks)}), found {type(found).__name__}.")
        if isinstance(value, (int, float)):
            check_number(name, value, above=above, at_least=at_least)
            return [float(value)] * T
        each: list[float] = []
        if isinstance(value, Mapping):
            each = [value[task] for task in self.tasks] if set(value) == set(self.tasks) else []
        elif not isinstance(value, Tensor):
            each = list(value)
        if len(each) != T:
            raise ValueError(f"{name}: expected one number or {T} ({', '.join(self.tasks)}), found {value!r}.")
        for task, number in zip(self.tasks, each, strict=True):
            check_number(f"{name}[{task!r}]", number, above=above, at_least=at_least)
        return [float(number) for number in each]

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` holds beside tensors: whose they are."""
        return {"tasks": list(self.tasks)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken; the tasks were compared before anything was loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + EXTRA_STATE_KEY)
        if saved is not None and tuple(saved["tasks"]) != self.tasks:
            raise ValueError(f"state_dict: expected the tasks {list(self.tasks)}, found {list(saved['tasks'])}.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"tasks={list(self.tasks)}"
