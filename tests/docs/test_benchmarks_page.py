"""docs/benchmarks.md: its rows are the committed ones, and its picture is theirs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts beside each other, not a package

import results  # noqa: E402
import run  # noqa: E402
import table  # noqa: E402


@pytest.mark.parametrize("file", table.FILES, ids=lambda file: file.name)
def test_the_tables_are_the_committed_rows(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([str(file), "--check"]) == 0, capsys.readouterr().err


def test_no_number_is_typed() -> None:
    """Times, sizes and ratios stand in the generated part alone."""
    typed = PAGE.split(table.BEGIN)[0] + PAGE.split(table.END)[1]
    assert not re.search(r"\d (µs|ms|s|MB|GB/s)\b|\d×", typed)


def test_the_picture_is_of_the_rows_that_are_shown() -> None:
    shown = re.findall(r"!\[.*?\]\(\.\./benchmarks/results/([\w.-]+)\)", PAGE)
    assert shown == [run.path.with_suffix(".png").name for run in results.latest() if run.where("surgery")]
    assert all((results.FOLDER / name).is_file() for name in shown)


def test_every_part_is_on_the_page() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.split("## How")[0], re.MULTILINE) == list(run.PARTS)


def test_the_share_from_which_a_machine_is_called_busy() -> None:
    assert f"From {table.QUIET:.0%} on the table is headed *Preliminary*" in " ".join(PAGE.split())


def test_the_parts_that_a_command_names_are_there() -> None:
    named = re.findall(r"--only ((?:\w+ )+)", PAGE)
    assert named
    assert all(set(parts.split()) <= set(run.PARTS) for parts in named)
