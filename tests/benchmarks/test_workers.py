"""Contenders in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from workers import workers


def counting(path: str) -> Callable[[], object]:
    def call() -> None:
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")

    return call


def failing() -> Callable[[], object]:
    raise ArithmeticError("not ready")


@pytest.mark.slow
def test_each_works_in_its_own_process_when_it_is_asked(tmp_path: object) -> None:
    paths = {name: f"{tmp_path}/{name}" for name in "ab"}
    with workers({name: partial(counting, path) for name, path in paths.items()}) as calls:
        for name in "aba":
            calls[name]()
    found = {name: Path(path).read_text().split() for name, path in paths.items()}
    assert [len(found[name]) for name in "ab"] == [2, 1]
    assert len({*found["a"], *found["b"], str(os.getpid())}) == 3


@pytest.mark.slow
def test_one_that_fails_is_named() -> None:
    with workers({"broken": failing}) as calls, pytest.raises(RuntimeError, match="broken: its process ended"):
        calls["broken"]()
