"""Contenders in processes of their own, and their turns."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from timing import Effort
from workers import Turn, take_turns, workers

# What a process of its own is sent has to be importable there, and this file need not be.
CONTENDERS = """
import os
from pathlib import Path

def counting(path):
    def call():
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\\n")
    return call

def failing():
    raise ArithmeticError("not ready")
"""


@pytest.fixture
def contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that other processes find as well: they get this one's sys.path."""
    (tmp_path / "contenders_for_a_test.py").write_text(CONTENDERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("contenders_for_a_test")
    del sys.modules["contenders_for_a_test"]


@pytest.mark.slow
def test_each_works_in_its_own_process_when_it_is_asked(tmp_path: Path, contenders: Any) -> None:
    paths = {name: tmp_path / name for name in "ab"}
    with workers({name: partial(contenders.counting, str(path)) for name, path in paths.items()}) as turns:
        seconds = [turns[name](count) for name, count in (("a", 1), ("b", 3), ("a", 2))]
    assert [len(taken) for taken in seconds] == [1, 3, 2]
    assert all(second > 0 for taken in seconds for second in taken)
    found = {name: path.read_text().split() for name, path in paths.items()}
    assert [len(found[name]) for name in "ab"] == [6, 5]  # one more a turn than was timed, and the first
    assert len({*found["a"], *found["b"], str(os.getpid())}) == 3


@pytest.mark.slow
def test_one_that_fails_is_named(contenders: Any) -> None:
    with workers({"broken": contenders.failing}) as turns, pytest.raises(RuntimeError, match="broken: its process ended"):
        turns["broken"](1)


def test_all_lead_as_often_and_processes_are_replaced() -> None:
    asked: list[str] = []

    def turn(name: str, count: int) -> list[float]:
        asked.append(name)
        return [float(len(asked))] * count

    @contextmanager
    def hire() -> Iterator[dict[str, Turn]]:
        asked.append("(")
        yield {name: partial(turn, name) for name in "abc"}
        asked.append(")")

    times = take_turns(hire, {"a": 1, "b": 2, "c": 1}, Effort(sample_s=0.0, budget_s=0.0, rounds=(3, 9)))
    assert "".join(asked) == "(abcbca)(cababc)"
    assert [times[name].samples for name in "abc"] == [4, 8, 4]
    assert times["a"].p50 == pytest.approx((7 + 11) / 2)


def test_as_many_rounds_as_are_asked_for() -> None:
    @contextmanager
    def hire() -> Iterator[dict[str, Turn]]:
        yield {"a": lambda count: [1.0] * count}

    assert take_turns(hire, {"a": 1}, Effort(sample_s=0.0, budget_s=60.0, rounds=(1, 5)))["a"].samples == 5
