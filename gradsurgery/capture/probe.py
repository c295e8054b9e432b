"""Backward passes that only look: they measure gradients through a boundary, which then neither operates nor counts a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


@contextmanager
def probing() -> Iterator[None]:
    """Backward passes inside add gradients up at every ``split`` as if it were not there.

    One flag for the process rather than for the thread: autograd runs CUDA's nodes on threads of its own, while the caller waits.
    """
    global _depth  # noqa: PLW0603
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def is_probing() -> bool:
    """Whether some caller is inside ``probing``."""
    return _depth > 0
