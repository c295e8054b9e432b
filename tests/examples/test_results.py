"""The page of committed comparisons says what the committed tables say."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLES = sorted((DOCS / "results").glob("*/table.csv"))


def rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def test_there_are_tables() -> None:
    assert {table.parent.name for table in TABLES} == {"hydranet", "resnet50", "multihead", "multitoken"}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.parent.name)
def test_means_and_deviations_are_those_of_the_seeds(table: Path) -> None:
    for row in rows(table):
        seeds = [float(value) for value in row["seeds"].split()]
        assert len(seeds) >= 2
        assert float(row["mean"]) == pytest.approx(statistics.mean(seeds), rel=1e-4, abs=1e-6)
        assert float(row["deviation"]) == pytest.approx(statistics.stdev(seeds), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.parent.name)
def test_the_page_shows_the_table(table: Path) -> None:
    page = (DOCS / "results.md").read_text()
    values: dict[str, list[tuple[float, float]]] = defaultdict(list)
    seeds = len(rows(table)[0]["seeds"].split())
    for row in rows(table):
        values[row["arm"]].append((float(row["mean"]), float(row["deviation"])))
    section = page[: page.index(f"](results/{table.parent.name}/metrics.png)")].rpartition("\n## ")[2]
    for arm, expected in values.items():
        line = next(line for line in section.splitlines() if line.startswith(f"| {arm} | {seeds} |"))
        cells = [cell.split("±") for cell in line.strip("| ").split("|")[2:]]
        assert [float(number) for cell in cells for number in cell] == pytest.approx(
            [number for pair in expected for number in pair], rel=5e-3, abs=6e-4
        )
    assert table.with_name("metrics.png").is_file()
