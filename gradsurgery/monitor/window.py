"""Steps that are read together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .rows import Row, layers_of
from .running import Running
from .scalars import scalars
from .statistics import Statistics
from .transfer import Transfer


@dataclass(frozen=True)
class Entry:
    """What was recorded of one step.

    Attributes:
        step: its number.
        statistics: of it; None where only something was logged.
        balance: a balancer's numbers, by kind. [T] each
        more: what was logged; changed in place by later calls.
    """

    step: int
    statistics: Statistics | None
    balance: dict[str, Tensor]
    more: dict[str, float | Tensor]

    def tensors(self) -> list[Tensor]:
        """What has to be brought to the host."""
        own = [] if self.statistics is None else self.statistics.parts()
        return [*own, *self.balance.values(), *(value for value in self.more.values() if isinstance(value, Tensor))]


class Window:
    """Entries, and then their way to the host."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._streams: set[torch.cuda.Stream] = set()
        self._transfer: Transfer | None = None

    def add(self, entry: Entry) -> None:
        """One more."""
        self.entries.append(entry)
        weights = None if entry.statistics is None else entry.statistics._weights
        if weights is None or weights.is_cuda:
            self.note_stream(entry.tensors())

    def note_stream(self, values: Iterable[float | Tensor]) -> None:
        """Remembers on which streams values are computed: the current ones of their devices."""
        for device in {value.device for value in values if isinstance(value, Tensor) and value.is_cuda}:
            self._streams.add(torch.cuda.current_stream(device))

    def start(self) -> None:
        """Nothing is added any more."""
        self._transfer = Transfer([tensor for entry in self.entries for tensor in entry.tensors()], self._streams)

    def ready(self) -> bool:
        """Whether the numbers have arrived."""
        return self._transfer is not None and self._transfer.ready()

    def rows(self, balanced: Sequence[str], by_sample: bool, running: Running) -> list[Row]:
        """A row a step, waiting for the numbers; of ascending steps, the later one where a step was run again.

        Args:
            balanced: the tasks of the balancer.
            by_sample: whether groups are samples, of which a row has the mean weights alone.
            running: counts the steps.
        """
        assert self._transfer is not None
        numbers = iter(self._transfer.wait())
        added: list[dict[str, float]] = []
        steps = [entry.statistics for entry in self.entries if entry.statistics is not None]
        for entry in self.entries:
            if entry.statistics is not None:
                entry.statistics.keep([next(numbers) for _ in entry.statistics.parts()])
            values: dict[str, float] = {}
            for kind in entry.balance:
                values |= {f"{kind}/{task}": number for task, number in zip(balanced, next(numbers).tolist(), strict=True)}
            for name, value in entry.more.items():
                values[name] = float(next(numbers)) if isinstance(value, Tensor) else value
            added.append(values)
        known = iter(scalars(steps))
        rows: list[Row] = []
        for entry, more in zip(self.entries, added, strict=True):
            while rows and rows[-1].step > entry.step:  # a checkpoint was loaded
                rows.pop()
            before = rows.pop() if rows and rows[-1].step == entry.step else None
            if entry.statistics is not None:
                values = next(known)
                running.count(entry.statistics, values.get("nonfinite") == 1)
                rows.append(Row(entry.step, values | more, None if by_sample else layers_of(entry.statistics)))
            elif before is None:
                rows.append(Row(entry.step, more, amends=True))
            else:
                rows.append(replace(before, values=before.values | more))
        return rows


def logged(name: str, value: float | Tensor) -> float | Tensor:
    """A value for a row: a number, or a copy of a tensor [] where it lies.

    Raises:
        TypeError, ValueError: a name or a value of another kind.
    """
    if not isinstance(name, str):
        raise TypeError(f"values: expected names that are strings, found {name!r}.")
    if name == "step":
        raise ValueError("values: expected other names than 'step', which is the row's.")
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().reshape(()).clone()
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        found = f"a {value.dtype} tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"values[{name!r}]: expected a number or a real tensor with one element, found {found}.")
    return float(value)
