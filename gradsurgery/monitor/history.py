"""The last steps of an aggregator, and who hears of each."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .statistics import Statistics

StepHook = Callable[[Statistics, Tensor], None]
StatisticsHook = Callable[[Statistics], None]
H = TypeVar("H", bound=Callable[..., Any])


class History:
    """Keeps the last steps, and calls whoever listens.

    Args:
        length: how many steps are kept.

    Attributes:
        steps: the last ones, oldest first.
    """

    def __init__(self, length: int) -> None:
        self.steps: deque[Statistics] = deque(maxlen=length)
        self._step_hooks: OrderedDict[int, StepHook] = OrderedDict()
        self._statistics_hooks: OrderedDict[int, StatisticsHook] = OrderedDict()
        self._saving_hooks: OrderedDict[int, Callable[[], None]] = OrderedDict()
        self._loading_hooks: OrderedDict[int, Callable[[int], None]] = OrderedDict()
        self._held: list[tuple[Statistics, Tensor | None]] | None = None  # steps of which nobody has heard yet

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> Statistics | None:
        """The last step."""
        return self.steps[-1] if self.steps else None

    def add(self, step: Statistics, gram: Tensor | None) -> None:
        """One more step.

        Args:
            step: what is known of it.
            gram: its K, where it has one: [T, T], or [G, T, T].
        """
        self.steps.append(step)
        if self._held is None:
            self._tell(step, gram)
        else:
            self._held.append((step, gram))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Steps in here are told when all is done; where an error ends it, they are taken back, and nobody hears of them."""
        outer, self._held, before = self._held, [], list(self.steps)
        try:
            yield
        except BaseException:
            self.steps.clear()
            self.steps.extend(before)
            self._held = outer
            raise
        done, self._held = self._held, outer
        if outer is not None:
            outer += done
            return
        for step, gram in done:
            self._tell(step, gram)

    def _tell(self, step: Statistics, gram: Tensor | None) -> None:
        for step_hook in list(self._step_hooks.values()):
            if gram is not None:
                step_hook(step, gram if gram.dim() == 2 else gram.sum(0))
        for hook in list(self._statistics_hooks.values()):
            hook(step)

    def saving(self) -> None:
        """The steps so far are about to be saved."""
        for hook in list(self._saving_hooks.values()):
            hook()

    def loaded(self, count: int) -> None:
        """The count of steps has become that of a checkpoint; the steps before are of another past."""
        self.steps.clear()
        for hook in list(self._loading_hooks.values()):
            hook(count)

    def register_step_hook(self, hook: StepHook) -> RemovableHandle:
        """``hook(statistics, gram)`` after every step with K, which is still on its device. [T, T]"""
        return _registered(self._step_hooks, hook)

    def register_statistics_hook(self, hook: StatisticsHook) -> RemovableHandle:
        """``hook(statistics)`` after every step that was not taken back."""
        return _registered(self._statistics_hooks, hook)

    def register_saving_hook(self, hook: Callable[[], None]) -> RemovableHandle:
        """``hook()`` before the count of steps goes into a ``state_dict``."""
        return _registered(self._saving_hooks, hook)

    def register_loading_hook(self, hook: Callable[[int], None]) -> RemovableHandle:
        """``hook(count)`` after the count of steps has come from a ``state_dict``."""
        return _registered(self._loading_hooks, hook)

    def alone(self) -> History:
        """The same steps, without anybody who listens."""
        twin = History(self.steps.maxlen or 1)
        twin.steps.extend(self.steps)
        return twin


def _registered(hooks: OrderedDict[int, H], hook: H) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle
