"""Where the rows of a monitor go."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .rows import Row
from .run_folder import RunFolder
from .running import Norms
from .telling import tell


@runtime_checkable
class Sink(Protocol):
    """Takes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Rows of ascending steps, the next ones.

        Where the first is of a step that was written already, training went back there (a checkpoint was loaded), or more was
        logged of the last step; what was written from that step on is out of date.
        """

    def close(self) -> None:
        """No more rows come."""


Callback: TypeAlias = Callable[[int, Mapping[str, float]], object]
SinkLike: TypeAlias = str | os.PathLike[str] | Callback | Sink
"""A run folder, a function of a step and its values, or a sink."""


class CallbackSink:
    """Calls ``callback(step, values)`` for every row; again for a step of which more was logged, or that is run again."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def __str__(self) -> str:
        return getattr(self.callback, "__name__", repr(self.callback))

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.callback(row.step, dict(row.values))

    def close(self) -> None:
        """Nothing."""


class TensorBoardSink:
    """A curve a value.

    In a folder of its own, steps that are run again take the place of the earlier ones. A writer that is given goes on as it is,
    and stays open: give it ``purge_step`` where a run is resumed.

    Args:
        writer: a folder, or a ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        ImportError: the package tensorboard is missing.
        TypeError: ``writer`` is neither.
    """

    def __init__(self, writer: str | os.PathLike[str] | Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardSink: expected the package tensorboard, found none. Try `pip install tensorboard`."
            ) from error
        folder = isinstance(writer, (str, os.PathLike))
        if not folder and not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer: expected a folder or a SummaryWriter, found {type(writer).__name__}.")
        self._open: Any = SummaryWriter
        self._folder = os.fspath(writer) if folder else None
        self._writer: Any = None if folder else writer
        self._written: Row | None = None

    def __str__(self) -> str:
        return f"TensorBoardSink({self._folder or self._writer})"

    def write(self, rows: Sequence[Row]) -> None:
        last = self._written
        if self._folder is not None and (self._writer is None or (last is not None and _goes_back(rows[0], last))):
            if self._writer is not None:
                self._writer.close()
            self._writer = self._open(self._folder, purge_step=rows[0].step)
        for row in rows:
            known = last.values if row.amends and last is not None and last.step == row.step else {}
            for name, value in row.values.items():
                if name not in known or not _same(value, known[name]):
                    self._writer.add_scalar(name, value, row.step)
        self._written = rows[-1]
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None and self._folder is not None:
            self._writer.close()


class Sinks:
    """All sinks of a monitor. One that fails is dropped, with a warning.

    Args:
        given: folders, functions, or sinks.
        settings: of the run, for folders.

    Raises:
        TypeError: one that is none of these.
        ValueError: as of ``RunFolder``.
    """

    def __init__(self, given: Sequence[SinkLike], settings: Mapping[str, object]) -> None:
        self._sinks: list[Sink] = []
        try:
            self._sinks += (_sink(one, settings) for one in given)
        except BaseException:
            self.close()
            raise

    def write(self, rows: Sequence[Row]) -> None:
        """Rows to each."""
        failed = [(sink, error) for sink in self._sinks if (error := _error_of(sink.write, rows)) is not None]
        for sink, error in failed:
            self._sinks.remove(sink)
            _warn(sink, error)

    def norms(self, before: int, count: int) -> Norms:
        """|out| of the last steps before one, in the run folder that is gone on with."""
        folders = [sink for sink in self._sinks if isinstance(sink, RunFolder)]
        try:
            return folders[0].norms(before, count) if folders else []
        except (OSError, ValueError):  # it cannot be written to either, which is said then
            return []

    def close(self) -> None:
        """Closes each."""
        sinks, self._sinks = self._sinks, []
        for sink, error in [(sink, _error_of(sink.close)) for sink in sinks]:
            if error is not None:
                _warn(sink, error)


def _sink(given: SinkLike, settings: Mapping[str, object]) -> Sink:
    if isinstance(given, (str, os.PathLike)):
        return RunFolder(given, settings)
    if not isinstance(given, type):
        if isinstance(given, Sink):
            return given
        if callable(given):
            return CallbackSink(given)
    found = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
    raise TypeError(
        f"sinks: expected a folder, a function of step and values, or an object with write(rows) and close(); found {found}."
    )


def _goes_back(row: Row, last: Row) -> bool:
    """Whether a row is of a step that runs again."""
    return row.step < last.step or (row.step == last.step and not row.amends)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _error_of(call: Callable[..., None], *arguments: object) -> Exception | None:
    """What a call raised."""
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


def _warn(sink: Sink, error: Exception) -> None:
    tell(f"Monitor: {sink} failed and gets no more rows ({type(error).__name__}: {error}). Training goes on, and so does .rows.")
