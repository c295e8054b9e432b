"""``pytest benchmarks --benchmark-only [--full] [--device cuda]``: the same cases and providers under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SMALL, grid


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole grid rather than a few small cases")
    parser.addoption("--device", default="cpu", help="cpu, cuda or cuda:0")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", grid() if metafunc.config.getoption("full") else SMALL, ids=str)


@pytest.fixture
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture
def finished(device: torch.device) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Makes a call wait for the device, so that its work and not its launch is timed."""

    def wrap(call: Callable[[], Any]) -> Callable[[], Any]:
        if device.type != "cuda":
            return call

        def waiting() -> Any:
            result = call()
            torch.cuda.synchronize(device)
            return result

        return waiting

    return wrap
