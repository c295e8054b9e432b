"""The README: every Python snippet runs, in order, in one session; its tables and commands are what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
import snippets
from scripts import tool

import gradsurgery as gs

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert snippets.run("README.md", snippets.surroundings()) >= 4


def test_the_tables_are_current() -> None:
    assert tool("readme").with_tables(TEXT) == TEXT
    assert all(f"| `{name}`" in TEXT for name in {**gs.methods(), **gs.balancers()})


@pytest.mark.parametrize("name", ["train", "test"])
def test_commands_are_found(name: str) -> None:
    assert tool("readme").command(name).startswith("pip install torch torchvision && pip install ")


def test_it_is_short() -> None:
    """What is longer than a look belongs in docs/."""
    assert len(TEXT.splitlines()) <= 360
