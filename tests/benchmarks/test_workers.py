"""Contenders in processes of their own, and their turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from timing import Effort
from workers import take_turns, workers


def counting(path: str) -> Callable[[], object]:
    def call() -> None:
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")

    return call


def failing() -> Callable[[], object]:
    raise ArithmeticError("not ready")


@pytest.mark.slow
def test_each_works_in_its_own_process_when_it_is_asked(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in "ab"}
    with workers({name: partial(counting, str(path)) for name, path in paths.items()}) as turns:
        seconds = [turns[name](count) for name, count in (("a", 1), ("b", 3), ("a", 2))]
    assert [len(taken) for taken in seconds] == [1, 3, 2]
    assert all(second > 0 for taken in seconds for second in taken)
    found = {name: path.read_text().split() for name, path in paths.items()}
    assert [len(found[name]) for name in "ab"] == [5, 4]  # one more a turn than was timed
    assert len({*found["a"], *found["b"], str(os.getpid())}) == 3


@pytest.mark.slow
def test_one_that_fails_is_named() -> None:
    with workers({"broken": failing}) as turns, pytest.raises(RuntimeError, match="broken: its process ended"):
        turns["broken"](1)


def test_all_lead_as_often() -> None:
    asked: list[str] = []

    def turn(name: str, count: int) -> list[float]:
        asked.append(name)
        return [float(len(asked))] * count

    turns = {name: partial(turn, name) for name in "abc"}
    times = take_turns(turns, {"a": 1, "b": 2, "c": 1}, Effort(sample_s=0.0, budget_s=0.0, rounds=(3, 9)))
    assert "".join(asked) == "abcbcacab"
    assert [times[name].samples for name in "abc"] == [3, 6, 3]
    assert (times["a"].p50, times["b"].p50) == (6.0, 4.0)
