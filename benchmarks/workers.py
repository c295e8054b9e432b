"""Contenders in processes of their own, which take turns: the memory that one leaves to the allocator serves itself alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

from timing import Call


@contextmanager
def workers(prepare: Mapping[str, Callable[[], Call]]) -> Iterator[dict[str, Call]]:
    """What has a contender's process do its work once, and returns when it is done.

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


def _asking(name: str, end: Connection) -> Call:
    def ask() -> None:
        try:
            end.send(None)
            end.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise RuntimeError(f"{name}: its process ended; see above.") from error

    return ask


def _serve(prepare: Callable[[], Call], end: Connection) -> None:
    call = prepare()
    while True:
        try:
            end.recv()
        except EOFError:
            return
        call()
        end.send(None)
