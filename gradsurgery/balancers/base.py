"""What every balancer shares: tasks, losses in two forms, and absent tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE_KEY

from gradsurgery.capture.tasks import task_names
from gradsurgery.distributed import OfAllRanks, Ranks, mean_losses
from gradsurgery.options import check_number

Losses: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor | None]
"""A dict by task name, or a sequence in the order of the tasks; a missing name or a None is a task absent in this step."""

PerTask: TypeAlias = float | Mapping[str, float] | Sequence[float] | Tensor
"""One number for all tasks, or one each: a dict by task name, or a sequence or a tensor [T] in the order of the tasks."""


class Balancer(nn.Module):
    """Turns the tasks' losses into one scalar: ``balancer(losses).backward()``.

    Parameters a balancer learns are ordinary parameters: give ``balancer.parameters()`` to an optimizer. Everything it needs to go
    on is in ``state_dict()``.

    With ``process_group`` several processes, each with a part of the batch, balance as one process with all of it would. The loss
    of a task is the mean of the ranks' losses, where a rank that lacks the task counts with zero, as it does where
    DistributedDataParallel and FSDP average gradients.

    * A call in training exchanges the losses: one all-reduce of T doubles (8 T bytes) in ``balancer(losses)``, none in the backward
      pass. Its value is the balanced loss of the whole batch, on every rank; its gradient goes to this rank's losses, for the
      model's gradients to be averaged over the ranks. A rank that lacks a task waits for its device to learn whether another
      has it; the others wait for nothing.
    * What a balancer learns gets the gradient of the whole batch, the same bits on every rank, without DistributedDataParallel.
      Inside of one nothing counts twice, for the mean of equal gradients is that gradient; but GradNorm with ``aggregator`` stays
      outside, as its gradient does not come through autograd.
    * Every rank makes the same calls in training. One without any of the tasks calls ``balancer({})``, after moving the balancer
      to its device, and propagates the result where the balancer learns (for the model it is a constant).
    * Out of training (``eval()``, ``no_grad``) nothing is exchanged, and a loss is of this rank's losses alone.
    * The state is that of one process, on every rank: any number of processes can go on from it.

    Under TORCH_DISTRIBUTED_DEBUG=DETAIL a call in training also compares the weights, in one all-gather of T doubles.

    Args:
        tasks: the tasks' names, or their number.
        process_group: the processes among which the batch is divided, as a process group (``torch.distributed.group.WORLD``) or a
            DeviceMesh. Building the balancer is collective then.

    Raises:
        TypeError: tasks that are no such thing, or an option of the wrong type.
        ValueError: no task, a name twice, a value that an option does not take, or what differs from rank to rank.
    """

    _exchanges: ClassVar[bool] = True
    """Whether a call in training has to know the other ranks' losses."""

    def __init__(self, tasks: Sequence[str] | int, *, process_group: Any = None) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] = tuple(task_names(tasks))
        self._ranks = None if process_group is None else Ranks(process_group)
        self._checked = 0  # calls whose weights were compared
        self._agree()

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
            TypeError, ValueError: an unknown name, a wrong number of losses, a loss that is no scalar tensor, or no loss at all (of
                several processes: on any of them).
        """
        given = self._given(losses, or_none=self._together)
        if not (self._together and self._exchanges):
            return self.total(given)
        total = self.total(self._over_ranks(given))
        self._check_ranks()
        return total.to(_dtype(given))

    def weighted(self, losses: Losses) -> dict[str, Tensor]:
        """The terms of ``forward``'s sum by task, for loops that propagate one head at a time.

        Of several processes those of this rank's tasks, of which the first also has what other ranks' tasks add to the value, and
        to what the balancer learns. A rank without any calls, and propagates, ``balancer({})`` instead.
        """
        given = self._given(losses)
        if not (self._together and self._exchanges):
            return {self.tasks[t]: term for t, term in self.terms(given).items()}
        terms = self.terms(self._over_ranks(given))
        self._check_ranks()
        first = next(iter(given))
        for t, term in terms.items():
            if t not in given:
                terms[first] = terms[first] + term
        return {self.tasks[t]: terms[t].to(_dtype(given)) for t in given}

    # --- several processes --------------------------------------------------------------------------------------------------

    def _agree(self, **options: object) -> None:
        """Compares what this is, and these options, with the other ranks', where there are any; collective.

        Raises:
            ValueError: on every rank, where one differs.
        """
        if self._ranks is not None:
            told = {"balancer": type(self).__name__, "tasks": self.tasks}
            self._ranks.agree({**told, **{name: _told(value) for name, value in options.items()}}, type(self).__name__)

    @property
    def _together(self) -> bool:
        """Whether a call is one of all ranks."""
        return self._ranks is not None and self._learning

    def _over_ranks(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """The losses of the tasks that some rank has: their means, whose gradients go to this rank's losses; collective. float64

        Raises:
            ValueError: on every rank, where none has a loss.
        """
        assert self._ranks is not None
        device = next((x.device for x in chain(losses.values(), self.parameters(), self.buffers())), torch.device("cpu"))
        means = mean_losses([losses.get(t) for t in range(len(self.tasks))], self._ranks, device)
        found = {t: mean for t, mean in enumerate(means) if mean is not None}
        if not found:
            raise ValueError("losses: expected the loss of at least one task on some rank, found none on any.")
        return {t: OfAllRanks.apply(losses[t], mean) if t in losses else mean for t, mean in found.items()}

    def _check_ranks(self) -> None:
        """Compares the weights of a call over the ranks, where such checks are asked for."""
        assert self._ranks is not None
        if self._ranks.checks:
            self._ranks.check_same(self.weights.double(), self._checked)
            self._checked += 1

    # --- what is given ------------------------------------------------------------------------------------------------------

    def _given(self, losses: Losses, *, or_none: bool = False) -> dict[int, Tensor]:
        """The losses present, by position, checked; at least one, or none."""
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
        if not (given or or_none):
            hint = "" if self._ranks is None else " On a rank without any, in training, call balancer({}) and propagate that."
            raise ValueError(f"losses: expected the loss of at least one task, found none.{hint}")
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


def _dtype(losses: Mapping[int, Tensor]) -> torch.dtype:
    """That of the losses, float32 at least."""
    return reduce(torch.promote_types, (loss.dtype for loss in losses.values()), torch.float32)


def _told(value: object) -> object:
    """An option as it is compared: the numbers, whatever device or order they came in."""
    if isinstance(value, Tensor):
        return value.tolist()
    return dict(sorted(value.items())) if isinstance(value, Mapping) else value
