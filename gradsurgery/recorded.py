"""The steps of an aggregator: their count, what is known of the last ones, who hears of them, and the losses told beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradsurgery.capture.losses import local, scalar_loss, stacked
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.memory import MethodMemory
from gradsurgery.methods import Method, Solution
from gradsurgery.monitor import Statistics
from gradsurgery.monitor.history import History, StatisticsHook, StepHook
from gradsurgery.options import check_integer
from gradsurgery.reuse import Reuse

L = TypeVar("L", bound=Mapping[str, Tensor] | Sequence[Tensor | None])


class RecordedSteps(MethodMemory):
    """A method's memory, and the steps that were taken with it.

    Args:
        method: that turns K into weights.
        names: of the tasks.
        every: for how many steps weights are used.
        history: how many past steps are kept.

    Raises:
        ValueError, TypeError: what is no such number.
    """

    def __init__(self, method: Method, names: TaskNames, every: int, history: int) -> None:
        super().__init__(method, names)
        check_integer("history", history, at_least=1)
        check_integer("every", every, at_least=1)
        self._reuse = Reuse(every)
        self._history = History(history)
        self._losses: dict[str, Tensor | float] = {}

    # --- one step more ------------------------------------------------------------------------------------------------------

    def _add(
        self, solution: Solution, present: tuple[bool, ...], groups: tuple[str, ...], told: Mapping[str, Tensor | float]
    ) -> None:
        """Counts a step, and says what it came to."""
        tasks = tuple(self._names.known)
        losses = tuple(local(loss) if isinstance(loss, Tensor) else loss for loss in map(told.get, tasks))
        K, w, status, combined = solution
        step, self._step = Statistics(self._step, tasks, present, K, w, status, groups, combined, losses), self._step + 1
        self._history.add(step, K)

    def _plain_step(self, name: str, device: torch.device, told: Mapping[str, Tensor | float]) -> None:
        """Records a step with one task, which takes its gradient as it is; no K is computed."""
        self._losses = {}
        weights = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        weights[self._names.index(name)] = 1.0
        present = tuple(task == name for task in self._names.known)
        self._add(Solution(None, weights), present, (), told)

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Takes a step back that was decided, but fails before it is done: the method's memory, the count, the weights kept."""
        memory = {name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)}
        tasks, groups, positions = self._state_tasks, self._state_groups, self._positions
        count, reuse = self._step, self._reuse.state()
        with self._history.held():
            try:
                yield
            except BaseException:
                for name in list(self._buffers):
                    if name in memory:
                        self._buffers[name] = memory[name]
                    else:
                        del self._buffers[name]
                self._state_tasks, self._state_groups, self._positions = tasks, groups, positions
                self._reuse.restore(reuse)
                self._step = count
                raise

    def register_step_hook(self, hook: StepHook) -> RemovableHandle:
        """Calls ``hook(statistics, gram)`` after every step of surgery, with K still on its device; GradNorm listens here.

        Raises:
            ValueError: the method computes no K, or not in every step.
        """
        if self._reuse.every > 1:
            raise ValueError(
                f"register_step_hook: expected K in every step, found every={self._reuse.every}, which computes it only where "
                "weights are renewed. Build the aggregator with every=1."
            )
        if not self.method.finds_gram:
            name = self.method.spec.name
            raise ValueError(
                f"register_step_hook: {name!r} treats every coordinate by itself and computes no K to listen to. Ask for it: "
                f"GradientAggregator({name!r}, diagnostics=True), at the cost of a second read of the gradients."
            )
        return self._history.register_step_hook(hook)

    def register_statistics_hook(self, hook: StatisticsHook) -> RemovableHandle:
        """Calls ``hook(statistics)`` after every step, whatever the method and the tasks; ``Monitor`` listens here.

        After the surgery, on the thread that autograd runs it in; of ``backward(losses)``, when ``.grad`` is written. A step that
        fails before is not told.
        Nothing has been brought to the host; who reads the statistics there waits for the device. Copies and pickles of the
        aggregator do not call it.
        """
        return self._history.register_statistics_hook(hook)

    # --- what happened ------------------------------------------------------------------------------------------------------

    @property
    def declared(self) -> bool:
        """Whether the tasks were given to the constructor."""
        return self._names.declared

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks known so far."""
        return tuple(self._names.known)

    @property
    def weights(self) -> Tensor | None:
        """w of the last step, 0 for absent tasks, on its device, without waiting for it. [T] float64

        None before the first step, and for a method that has no weights (family "coordinatewise").
        """
        last = self._history.last
        return None if last is None else last.device_weights

    def statistics(self) -> Statistics:
        """Norms, cosines, conflicts and weights of the last step, computed when read.

        Raises:
            RuntimeError: no step has been taken yet.
        """
        if self._history.last is None:
            raise RuntimeError("statistics: no step of surgery has been taken yet.")
        return self._history.last

    @property
    def history(self) -> list[Statistics]:
        """The last steps, oldest first."""
        return list(self._history.steps)

    # --- losses -------------------------------------------------------------------------------------------------------------

    def observe(self, losses: L) -> L:
        """Tells the losses of this step, before its surgery; returns what it was given.

        ``sum(surgery.observe([loss_a, loss_b])).backward()``. They are in the step's ``statistics``, and methods that ask for
        losses get them. Each step's losses are forgotten after its surgery. Their values are copied where they lie, without
        waiting, so that ``total = loss_a; total += loss_b`` changes nothing.

        Args:
            losses: scalars, as a dict by task name or a sequence in the order of the tasks, None for an absent task.

        Raises:
            TypeError, ValueError: an unknown name, a wrong number of losses, or a loss that is no scalar.
        """
        if isinstance(losses, Mapping):
            by_name: dict[str, Tensor | None] = dict(losses)
        elif isinstance(losses, str) or not isinstance(losses, Sequence):
            raise TypeError(f"losses: expected a dict by task or a sequence, found {type(losses).__name__}.")
        else:
            given: list[Tensor | None] = list(losses)
            names = self._names.present(None if self._names.known else len(given))
            if len(given) != len(names):
                raise ValueError(f"losses: expected {len(names)} ({', '.join(names)}), found {len(given)}.")
            by_name = dict(zip(names, given, strict=True))
        told = {name: scalar_loss(loss, f"losses[{name!r}]") for name, loss in by_name.items() if loss is not None}
        for name in told:
            self._names.index(name)
        self._losses = {name: loss.clone() if isinstance(loss, Tensor) else loss for name, loss in told.items()}
        return losses

    def _checked_losses(self, told: Mapping[str, Tensor | float], present: Sequence[bool], device: torch.device) -> Tensor | None:
        """The losses told of this step, NaN for tasks without. [T] float64"""
        if not told:
            return None
        if "losses" in self.method.needs:
            missing = [name for name, here in zip(self._names.known, present, strict=True) if here and name not in told]
            if missing:
                raise ValueError(f"losses: expected one of every task with a gradient, found none of {', '.join(missing)}.")
        return stacked([told.get(name, math.nan) for name in self._names.known], device)

    # --- state --------------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        self._history.saving()
        state = super().get_extra_state()
        return state if self._reuse.every == 1 else state | {"reuse": self._reuse.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._reuse.restore(state.get("reuse", {}))
        self._history.loaded(self._step)
