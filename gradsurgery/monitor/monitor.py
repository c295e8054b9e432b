"""``Monitor``: what an aggregator does, step by step, on its way to a run folder, TensorBoard or a function."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery.aggregator import GradientAggregator
from gradsurgery.balancers.base import Balancer
from gradsurgery.capture.losses import local
from gradsurgery.options import check_integer

from .rows import Row
from .running import Running
from .sinks import SinkLike, Sinks
from .statistics import Statistics
from .telling import tell
from .window import Entry, Window, logged

_IN_FLIGHT = 2  # windows whose numbers are on their way to the host, at most


class Monitor:
    """Listens to an aggregator, and writes a row for each of its steps.

    ::

        surgery = gs.GradientAggregator("sum", tasks=("seg", "depth"))  # what happens without surgery, observed
        monitor = gs.Monitor(surgery, "runs/first")
        ...
        surgery.observe(losses)  # split and detach; backward(losses) knows them
        monitor.log({"lr": 1e-3})

    A row has what ``Statistics.scalars`` says, ``balance/a`` (and ``variance/a``) of the balancer, ``norm_mean`` and
    ``norm_deviation``, and what ``log`` was given. Training is the same with and without: no random numbers, nothing written to
    what is not its own, no graph held. On CUDA nothing waits, unless the device is more than two windows behind: the numbers of
    ``read_every`` steps go to the host in one copy, and their rows appear once it has arrived; ``flush`` waits, and so does
    ``state_dict`` of the aggregator, so that no checkpoint is ahead of the folder. On other accelerators each such copy waits.

    ``norm_mean`` and ``norm_deviation`` are mean and standard deviation of |out| over the last 100 recorded steps in which it is
    finite. They tell how the LENGTH of the combined gradient varies from step to step. The variance of the gradient itself would
    need products between the gradients of different steps, which K does not have. With ``split`` and ``detach`` under a
    ``GradScaler``, lengths are of the scaled gradients.

    An error in reading a step ends the monitor, with a warning, not the training.

    Of several processes rank 0 alone writes, and all keep rows; losses are those of the own process. A resumed run goes on in its
    folder: rows of steps that are run again replace the earlier ones, and a run that begins anew begins a new log there. CUDA
    graphs replay without Python, so that nothing hears of their steps.

    What is waiting is written at ``close()``, when the monitor goes (nobody refers to it, nor to its aggregator), or when Python
    ends. It may be used from other threads. Sinks are called where a step is recorded: in the backward pass, on autograd's thread.

    Args:
        surgery: whose steps; ``"sum"`` leaves gradients as they are without surgery, to the rounding of a sum.
        sinks: where rows go: a folder (``log.csv``, and ``layers.csv`` where surgery is by groups of tensors), a function of the
            step and its values, ``TensorBoardSink``, or any object with ``write(rows)`` and ``close()``. One that fails is dropped
            with a warning; training goes on.
        balancer: whose weights are recorded, too, as they are in the step's surgery.
        every: record each n-th step.
        read_every: how many recorded steps are read at once; a row of ``layers.csv`` is over so many, or fewer where ``flush``
            came between.
        capacity: how many rows are kept.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or a folder that another monitor of this process writes to.
    """

    def __init__(
        self,
        surgery: GradientAggregator,
        *sinks: SinkLike,
        balancer: Balancer | None = None,
        every: int = 1,
        read_every: int = 100,
        capacity: int = 1024,
    ) -> None:
        self._closed = True  # until all is well
        wanted: object = surgery
        if not isinstance(wanted, GradientAggregator):
            raise TypeError(f"surgery: expected a GradientAggregator, found {type(wanted).__name__}.")
        weighed: object = balancer
        if not isinstance(weighed, Balancer | None):
            raise TypeError(f"balancer: expected a Balancer, found {type(weighed).__name__}.")
        for name, value in (("every", every), ("read_every", read_every), ("capacity", capacity)):
            check_integer(name, value, at_least=1)
        self._every, self._read_every = every, read_every
        self._balancer = balancer
        self._by_sample = surgery._by_sample
        self._lock = threading.RLock()
        self._rows: deque[Row] = deque(maxlen=capacity)
        self._running = Running()
        self._window = Window()
        self._in_flight: deque[Window] = deque()
        self._early: dict[str, float | Tensor] = {}  # logged before the first step
        self._step: int | None = None  # the last one, recorded or not
        self._first_rank: bool | None = None
        self._told_of_capture = self._collecting = False
        self._process = os.getpid()
        self._sinks = Sinks(sinks, _settings(surgery, every, read_every))
        self._handles = (
            surgery.register_statistics_hook(self._on_step),
            surgery._history.register_saving_hook(self._on_saving),
            surgery._history.register_loading_hook(self._on_loading),
        )
        self._closed = False
        _monitors.add(self)

    # --- what is recorded ---------------------------------------------------------------------------------------------------

    def _on_step(self, step: Statistics) -> None:
        with self._lock, self._never_in_the_way():
            if not (self._closed or self._is_captured()):
                self._record(step)

    def _on_saving(self) -> None:
        with self._lock, self._never_in_the_way():
            self.flush()

    def _on_loading(self, count: int) -> None:
        with self._lock:
            self._step = count - 1 if count else None

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        """An error in here ends the monitor, not the training."""
        try:
            yield
        except Exception as error:
            self._window, self._in_flight = Window(), deque()
            self.close()
            tell(f"Monitor: it ends here, as reading a step failed ({type(error).__name__}: {error}). Training goes on.")

    @torch.no_grad()
    def _record(self, step: Statistics) -> None:
        self._step = step.step
        self._collect(wait=False)
        if step.step % self._every:
            return
        if len(self._window.entries) >= self._read_every:
            self._start()
        self._rank()
        self._window.add(Entry(step.step, step, self._balance(), self._early))
        self._early = {}

    def _balance(self) -> dict[str, Tensor]:
        """The balancer's numbers, [T] each."""
        if self._balancer is None:
            return {}
        found = {"balance": self._balancer.weights, "variance": getattr(self._balancer, "variances", None)}
        whole = {name: local(numbers.detach()) for name, numbers in found.items() if numbers is not None}
        return {name: numbers.clone() for name, numbers in whole.items() if numbers is not None}

    def _is_captured(self) -> bool:
        if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
            return False
        if not self._told_of_capture:
            self._told_of_capture = True
            tell("Monitor: a CUDA graph is being captured. Its replays run without Python, so that their steps are not recorded.")
        return True

    @torch.no_grad()
    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """More values of the last step (of a checkpoint that was loaded: its last one); before the first one, of that.

        Args:
            values: numbers, or tensors with one element, which are copied where they lie and come with the next reading.

        Raises:
            TypeError: a name or a value of another kind.
            ValueError: the name "step".
            RuntimeError: the monitor is closed.
        """
        wanted: object = values
        if not isinstance(wanted, Mapping):
            raise TypeError(f"values: expected a dict of numbers by name, found {type(wanted).__name__}.")
        given = {name: logged(name, value) for name, value in values.items()}
        with self._lock:
            if self._closed:
                raise RuntimeError("log: expected an open monitor, found one that was closed.")
            if self._step is None:
                self._early |= given
                return
            last = self._window.entries[-1] if self._window.entries else None
            if last is not None and last.step == self._step:
                last.more.update(given)
            else:
                self._window.add(Entry(self._step, None, {}, given))
            self._window.note_stream(given.values())

    # --- what is read -------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """The last ``capacity`` rows that have arrived, oldest first."""
        with self._lock:
            self._collect(wait=False)
            return list(self._rows)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """In how many of the rows so far a task's gradient was not finite, and in how many it was absent, by task.

        Keys: "nonfinite", "absent". Counted since the monitor was made; a step that ran twice counts twice.
        """
        with self._lock:
            self._collect(wait=False)
            return {kind: dict(count) for kind, count in self._running.counts.items()}

    def flush(self) -> None:
        """Waits for all steps so far, and writes their rows; the window ends here."""
        with self._lock:
            if not self._closed:
                self._start()
                self._collect(wait=True)

    def close(self) -> None:
        """Writes what is left, and stops listening; nothing happens at a second call."""
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            finally:
                self._closed = True
                for handle in self._handles:
                    handle.remove()
                self._balancer = None
                _monitors.discard(self)
                self._sinks.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._process == os.getpid():  # not in a fork, which has a copy of what waits
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("Monitor: expected to stay in its process, found a copy or a pickle of it. Build one for each aggregator.")

    # --- on the way ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """The window's numbers begin their way to the host, and another window begins."""
        if self._window.entries:
            window, self._window = self._window, Window()
            window.start()
            self._in_flight.append(window)

    def _collect(self, wait: bool) -> None:
        """Rows of the windows that have arrived; of all, or of more than may be under way, by waiting."""
        if self._collecting:  # a sink that is being written to calls back
            return
        self._collecting = True
        try:
            while self._in_flight and (wait or len(self._in_flight) > _IN_FLIGHT or self._in_flight[0].ready()):
                window = self._in_flight.popleft()
                self._take(window.rows(() if self._balancer is None else self._balancer.tasks, self._by_sample, self._running))
        finally:
            self._collecting = False

    def _take(self, rows: list[Row]) -> None:
        """Rows that have arrived, into the ring and the sinks."""
        first = rows[0].step
        dropped = None
        while self._rows and self._rows[-1].step >= first:  # run again, or there is more of the last step
            dropped = self._rows.pop()
        if rows[0].amends and dropped is not None and dropped.step == first:
            rows[0] = replace(dropped, values=dropped.values | rows[0].values, amends=True)
        writes = self._rank()
        self._running.complete(rows, self._sinks.norms if writes else lambda step, count: [])
        self._rows.extend(rows)
        if writes:
            self._sinks.write(rows)

    def _rank(self) -> bool:
        """Whether this process writes: rank 0 of those of torch.distributed, also when that has ended."""
        if dist.is_available() and dist.is_initialized():
            self._first_rank = dist.get_rank() == 0
        return self._first_rank is not False


def _settings(surgery: GradientAggregator, every: int, read_every: int) -> dict[str, object]:
    """What a page about the run tells of it."""
    by = surgery._group_by
    return {
        "method": surgery.method.spec.name,
        "method_options": {name: str(getattr(surgery.method, name)) for name in surgery.method.spec.options},
        "group_by": by if by is None or isinstance(by, str) else "a function",
        "every": every,
        "read_every": read_every,
    }


_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for monitor in list(_monitors):
        if monitor._process == os.getpid():
            monitor.close()
