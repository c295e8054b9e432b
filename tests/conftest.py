"""What every test may ask for: devices, real data, and a Hypothesis that does the same on every machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from gradsurgery.methods import registry

settings.register_profile("gradsurgery", deadline=None, derandomize=True, database=None, max_examples=40, print_blob=True)
settings.load_profile("gradsurgery")

BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="also run what takes an hour: 10,000 matrices of every size")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--exhaustive"):
        for item in items:
            if "exhaustive" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes an hour in all: run it by `pytest --exhaustive`"))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn. Where GRADSURGERY_REQUIRE_CUDA=1 promises a GPU, its absence is a failure and no skip."""
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("GRADSURGERY_REQUIRE_CUDA") == "1":
            pytest.fail("GRADSURGERY_REQUIRE_CUDA=1, but torch finds no CUDA device.", pytrace=False)
        pytest.skip("torch finds no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of small real data sets that $GRADSURGERY_DATA names."""
    named = os.environ.get("GRADSURGERY_DATA")
    if not named:
        pytest.skip("GRADSURGERY_DATA names no folder of sample data")
    folder = Path(named)
    assert folder.is_dir(), f"GRADSURGERY_DATA: expected a folder, found {named!r}"
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install gradsurgery[test]")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium on PATH to open pages with")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        yield started
        started.close()


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = registry.methods()
    yield
    registry._SPECS.clear()
    registry._SPECS.update(before)
    registry._DEFAULTS.clear()
    registry._cached.cache_clear()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
