"""docs/loops.md shows the loops that are tested here, and a user changes at most five lines of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import tool

ROOT = Path(__file__).resolve().parents[2]


LOOPS = tool("loops").LOOPS
NAMES = LOOPS.names()


def test_the_diffs_are_current() -> None:
    text = LOOPS.path.read_text()
    assert LOOPS.with_diffs(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_at_most_five_lines_change(name: str) -> None:
    assert 1 <= LOOPS.changed(name) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_loop_that_is_tested(name: str) -> None:
    """Its diff, applied, is ``after.py``, and undone, ``before.py``, to the line."""
    block = LOOPS.path.read_text().split(f"<!-- loop: {name}: begin -->\n```diff\n")[1].split("\n```\n<!-- loop")[0].splitlines()
    for when, other in (("before", "+"), ("after", "-")):
        shown = [line[1:] for line in block if not line.startswith(other)]
        assert shown == (ROOT / "tests" / "loops" / name / f"{when}.py").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_every_loop_is_run(name: str) -> None:
    assert f"from loops.{name} import after, before" in (ROOT / "tests" / "loops" / f"test_{name}.py").read_text()


def test_a_page_with_other_loops_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"expected a diff of each of \[.*found \['gone'\]"):
        LOOPS.with_diffs("<!-- loop: gone: begin -->\n<!-- loop: gone: end -->\n")


@pytest.mark.parametrize(("before", "after", "count"), [("a\nb\n", "a\nc\n", 1), ("a\n", "a\n\nb\nc\n", 2), ("a\nb\n", "b\n", 1)])
def test_lines_are_counted_once(tmp_path: Path, before: str, after: str, count: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "before.py").write_text(before)
    (tmp_path / "x" / "after.py").write_text(after)
    assert tool("loops").Page(tmp_path / "page.md", tmp_path).changed("x") == count
