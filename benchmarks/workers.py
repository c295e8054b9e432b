"""Contenders in processes of their own, which take turns: the memory that one leaves to the allocator serves itself alone."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection

from timing import Call, Effort, Times, percentiles

Turn = Callable[[int], list[float]]
"""Has a contender's process make so many calls one after another, and tells the seconds of each."""


LIFETIME = 2
"""For how many rounds a process serves. It keeps the luck with which its memory was laid out, which sets two of the same apart."""


def take_turns(
    hire: Callable[[], AbstractContextManager[Mapping[str, Turn]]], calls: Mapping[str, int], effort: Effort
) -> dict[str, Times]:
    """Times all contenders side by side, turn by turn, in new processes every few rounds; each leads as often as the others.

    Args:
        hire: starts a process for each contender, and ends them.
        calls: how many of each make a turn.
        effort: how many rounds, and a budget that all share; a sample is one call.
    """
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    stop = time.perf_counter() + effort.budget_s
    least, most = effort.rounds
    for first in range(0, most, LIFETIME):
        if first >= least and time.perf_counter() > stop:
            break
        with hire() as turns:
            for r in range(first, min(first + LIFETIME, most)):
                lead = r % len(names)
                for name in names[lead:] + names[:lead]:
                    taken[name] += turns[name](calls[name])
    return {name: percentiles(values) for name, values in taken.items()}


@contextmanager
def workers(prepare: Mapping[str, Callable[[], Call]]) -> Iterator[dict[str, Turn]]:
    """The contenders' turns. The processes wait in between.

    The first call of a turn is not timed: the system may have taken back from a process that waited what no training run, which
    never waits, would lack.

    Args:
        prepare: called in the process; it and what it returns make one contender. It has to be picklable.

    Raises:
        RuntimeError: a contender failed; its process has said how.
    """
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in prepare.items():
            ends[name], other = context.Pipe()
            process = context.Process(target=_serve, args=(make, other), name=name, daemon=True)
            process.start()
            other.close()
            processes.append(process)
        yield {name: _asking(name, end) for name, end in ends.items()}
    finally:
        for end in ends.values():
            end.close()
        for process in processes:
            process.join(10)
            process.terminate()


def _asking(name: str, end: Connection) -> Turn:
    def ask(count: int) -> list[float]:
        try:
            end.send(count)
            seconds: list[float] = end.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise RuntimeError(f"{name}: its process ended; see above.") from error
        return seconds

    return ask


def _serve(prepare: Callable[[], Call], end: Connection) -> None:
    call = prepare()
    call()
    while True:
        try:
            count = end.recv()
        except EOFError:
            return
        call()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        end.send(seconds)
