"""layers.csv: what was measured layer by layer, over windows of steps."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report.error import ReportError

KEYS = ("step", "steps", "layer")
ROWS = 50_000  # lines that are turned into numbers at once


@dataclass(frozen=True)
class Layers:
    """Means over windows of recorded steps.

    Attributes:
        names: in the order of the file, which is the model's. [L]
        ends: the last step of each window. [W]
        counts: how many recorded steps it holds. [W]
        values: by column, NaN where there is none. [L, W] each
        torn: the last line was not whole and was left out.
    """

    names: tuple[str, ...]
    ends: NDArray[np.int64]
    counts: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    torn: bool

    def column(self, name: str) -> NDArray[np.float64]:
        """Finite values of a column, NaN elsewhere. [L, W]"""
        if name not in self.values:
            return np.full((len(self.names), len(self.ends)), np.nan)
        values = self.values[name]
        return np.where(np.isfinite(values), values, np.nan)

    def pair(self, one: str, other: str) -> str:
        """Two tasks as the columns name them, in the order that is there."""
        return f"{other}-{one}" if f"cosine/{other}-{one}" in self.values else f"{one}-{other}"


def read_layers(path: Path) -> Layers | None:
    """None where the file holds no whole row; of rows that are there twice the last counts.

    Raises:
        ReportError: the file cannot be read, lacks a column, or holds a cell that is no number.
    """
    try:
        torn = False
        with open(path, newline="", encoding="utf-8-sig") as file:

            def whole_lines() -> Iterator[str]:
                nonlocal torn
                for line in file:
                    torn = not line.endswith("\n")
                    if not torn:
                        yield line

            reader = csv.reader(whole_lines())
            header = next(reader, [])
            if missing := [name for name in KEYS if name not in header]:
                raise ReportError(f"{path}: expected the columns {', '.join(KEYS)}, found no {' and no '.join(missing)}.")
            places = [header.index(name) for name in KEYS]
            others = [place for place in range(len(header)) if place not in places]
            parts, names = [], list[str]()
            while rows := list(itertools.islice(reader, ROWS)):
                whole = [row for row in rows if row]
                names += [row[places[2]] if len(row) > places[2] else "" for row in whole]
                parts.append(_numbers(path, whole, [*places[:2], *others], header))
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); restore the file or its permissions.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"{path}: expected rows of cells in UTF-8, separated by commas ({error}).") from error
    table = np.concatenate(parts) if parts else np.empty((0, len(header)))
    if not len(table):
        return None
    order = list(dict.fromkeys(names))
    index = {name: place for place, name in enumerate(order)}
    rows_of = np.array([index[name] for name in names])
    ends, windows = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    counts = np.zeros(len(ends))
    counts[windows] = table[:, 1]
    values: dict[str, NDArray[np.float64]] = {}
    for offset, place in enumerate(others, start=2):
        grid = np.full((len(order), len(ends)), np.nan)
        grid[rows_of, windows] = table[:, offset]
        values.setdefault(header[place], grid)
    return Layers(tuple(order), ends, counts, values, torn)


def _numbers(path: Path, rows: list[list[str]], places: list[int], header: list[str]) -> NDArray[np.float64]:
    """The cells in ``places``, empty ones as NaN; [rows, places]"""
    numbers = np.empty((len(rows), len(places)))
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ReportError(
                f"{path}: expected {len(header)} cells, one a column of the header, found a row of {len(row)}: {row[:4]}."
            )
        numbers[number] = [_number(path, header[place], row[place]) for place in places]
    if not np.isfinite(numbers[:, :2]).all():
        raise ReportError(f"{path}: expected a number in every cell of the columns step and steps, found one that is not.")
    return numbers


def _number(path: Path, column: str, cell: str) -> float:
    try:
        return float(cell) if cell else np.nan
    except ValueError as error:
        raise ReportError(f"{path}, column {column!r}: expected a number or nothing, found {cell[:40]!r}.") from error
