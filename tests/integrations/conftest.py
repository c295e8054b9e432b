"""What the tests of several frameworks ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def own_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Accelerator's settings are those of the process, and a precision also of its environment: gone after the test."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
