"""What the loops build, for their tests to look at."""

from __future__ import annotations

from typing import Any

import pytest

import gradsurgery as gs


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[gs.GradientAggregator]:
    """The aggregators that a loop makes, in order."""
    made: list[gs.GradientAggregator] = []

    class Recorded(gs.GradientAggregator):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(gs, "GradientAggregator", Recorded)
    return made
