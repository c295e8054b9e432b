"""Committed results: one file for each device and day, ``{"environment": ..., "rows": [...]}``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Results:
    """One run."""

    path: Path
    environment: dict[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> Results:
        content = json.loads(path.read_text())
        return cls(path, content["environment"], content["rows"])

    def write(self) -> None:
        """A row a line, so that results can be compared as text."""
        lines = ",\n".join("    " + json.dumps(row) for row in self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f'{{\n  "environment": {json.dumps(self.environment)},\n  "rows": [\n{lines}\n  ]\n}}\n')

    def where(self, kind: str, **values: object) -> list[Row]:
        """Rows of a kind, with these values."""
        return [row for row in self.rows if row["kind"] == kind and all(row.get(k) == v for k, v in values.items())]

    def one(self, kind: str, **values: object) -> Row | None:
        """The one such row, or None.

        Raises:
            ValueError: there are several.
        """
        found = self.where(kind, **values)
        if len(found) > 1:
            raise ValueError(f"{self.path}: expected one {kind} row with {values}, found {len(found)}.")
        return found[0] if found else None


def latest(folder: Path = FOLDER) -> list[Results]:
    """The newest rows of each device, GPUs first: its runs, oldest first, without the kinds of rows that a newer one has, too.

    Raises:
        ValueError: there is no result, or one of a --quick run.
    """
    runs = [Results.read(path) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise ValueError(f"{folder}: expected results of benchmarks/run.py, found none.")
    for run in runs:
        if run.environment["quick"]:
            raise ValueError(f"{run.path}: made with --quick, which measures nothing worth showing; run without it.")
    runs.sort(key=lambda run: (*_device(run), str(run.environment["date"])))
    shown: list[Results] = []
    known: dict[tuple[bool, str, int], set[str]] = {}
    for run in reversed(runs):
        kinds = known.setdefault(_device(run), set())
        rows = [row for row in run.rows if row["kind"] not in kinds]
        kinds |= {row["kind"] for row in rows}
        if rows:
            shown.insert(0, replace(run, rows=rows))
    return shown


def _device(run: Results) -> tuple[bool, str, int]:
    return run.environment["kind"] != "cuda", run.environment["device"], run.environment["cores"]
