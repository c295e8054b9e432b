"""The page of committed comparisons says what the committed tables say."""

from __future__ import annotations

import csv
import json
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


def test_memory_is_what_was_measured() -> None:
    measured = json.loads((DOCS / "results/multitoken/memory.json").read_text())["rows"]
    step = {(row["form"], row["vocabulary"], row["tokens"]): row["step"] for row in measured}
    page = (DOCS / "results.md").read_text()
    for form, label in (("detach", "detached, one head at a time"), ("sum", "summed losses")):
        cells = " | ".join(f"{step[form, v, 8] / step[form, v, 1]:.2f}×" for v in (256, 4096))
        assert f"| {label} | {cells} |" in page


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.parent.name)
def test_cosines_are_near_zero_as_the_page_says(table: Path) -> None:
    bounds = {"hydranet": (-0.01, 0.01), "resnet50": (-0.01, 0.01), "multihead": (-0.02, 0.17), "multitoken": (0.0, 0.06)}
    low, high = bounds[table.parent.name]
    found = [float(row["mean"]) for row in rows(table.with_name("cosines.csv"))]
    assert low <= min(found) <= max(found) <= high
