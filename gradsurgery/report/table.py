"""A CSV file of numbers as arrays: a header, and rows of which there may be a million."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report.error import ReportError

CHUNK = 1 << 22  # bytes that are turned into numbers at once: large enough for NumPy, small enough for any memory


class Table(NamedTuple):
    """The columns of a file.

    Attributes:
        columns: NaN where a cell is empty; infinite where it holds a number that is not finite, NaN included. [R] each
        torn: the last line had no end, as when the run is still being written, and was left out.
        repeated: columns whose names stood in the header before; the first of each counts.
    """

    columns: dict[str, NDArray[np.float64]]
    torn: bool
    repeated: tuple[str, ...]


def read_table(path: Path) -> Table:
    """Every cell as a number.

    Raises:
        ReportError: the file cannot be read, has no header, a row of another length, or a cell that is no number; with its line.
    """
    try:
        with open(path, "rb") as file:
            names, lines = read_header(path, file)
            parts: list[NDArray[np.float64]] = []
            torn = False
            line = lines + 1
            for chunk in _chunks(file):
                torn = not chunk.endswith(b"\n")
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if whole:
                    parts.append(_numbers(path, whole, names, line))
                    line += whole.count(b"\n")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); restore the file or its permissions.") from error
    columns: dict[str, NDArray[np.float64]] = {}
    for place, name in enumerate(names):
        if name not in columns:
            columns[name] = np.concatenate([part[:, place] for part in parts]) if parts else np.empty(0)
    return Table(columns, torn, tuple(sorted({name for name in names if names.count(name) > 1})))


def read_header(path: Path, file: BinaryIO) -> tuple[list[str], int]:
    """The columns' names, and over how many lines they stand: a quoted name may hold a line break."""
    head = file.readline()
    lines = 1
    while head.count(b'"') % 2 and (more := file.readline()):
        head += more
        lines += 1
    if not head.strip():
        raise ReportError(
            f"{path}: expected a header of column names, found an empty file; was a step recorded before the run ended?"
        )
    try:
        names = next(csv.reader(io.StringIO(head.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise ReportError(f"{path}, line 1: expected column names in UTF-8, separated by commas ({error}).") from error
    return names, lines


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines, about CHUNK bytes at once; a last line without its end is the end of the last chunk."""
    rest = b""
    while read := file.read(CHUNK):
        cut = read.rfind(b"\n") + 1
        if cut:
            yield rest + read[:cut]
            rest = read[cut:]
        else:
            rest += read
    if rest:
        yield rest


def _numbers(path: Path, text: bytes, names: list[str], line: int) -> NDArray[np.float64]:
    """[rows, columns]; the fast way, and where that fails the careful one, which names the cell."""
    plain = b"\n" + text.replace(b"\r\n", b"\n").replace(b'"', b"").lower().replace(b"nan", b"inf")
    while b"\n\n" in plain:
        plain = plain.replace(b"\n\n", b"\n")
    plain = plain[1:]
    if not plain:
        return np.empty((0, len(names)))
    marks = np.frombuffer(plain, np.uint8)
    starts = np.concatenate(([0], np.flatnonzero(marks == ord("\n"))[:-1] + 1))
    cells = np.add.reduceat(marks == ord(","), starts, dtype=np.int64) + 1
    if (cells == len(names)).all() and len(names) > 1:
        for _ in range(2):
            plain = plain.replace(b",,", b",nan,")
        plain = (b"\n" + plain).replace(b",\n", b",nan\n").replace(b"\n,", b"\nnan,")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older NumPy warns of a cell that is no number, and returns what came before
            try:
                values = np.fromstring(plain[1:-1].replace(b"\n", b","), np.float64, sep=",")
            except (ValueError, DeprecationWarning):
                values = np.empty(0)
        if values.size == len(starts) * len(names):
            return values.reshape(len(starts), len(names))
    return _careful(path, text, names, line)


def _careful(path: Path, text: bytes, names: list[str], line: int) -> NDArray[np.float64]:
    rows = []
    for number, row in enumerate(text.decode("utf-8", "replace").splitlines(), start=line):
        if not row.strip():
            continue
        cells = next(csv.reader([row]))
        if len(cells) != len(names):
            raise ReportError(
                f"{path}, line {number}: expected {len(names)} cells, one a column of the header, found {len(cells)}; "
                "take the line out if the run was interrupted there."
            )
        rows.append([_number(path, number, name, cell.strip()) for name, cell in zip(names, cells, strict=True)])
    return np.array(rows, np.float64).reshape(len(rows), len(names))


def _number(path: Path, line: int, name: str, cell: str) -> float:
    if not cell:
        return np.nan
    try:
        value = float(cell)
    except ValueError as error:
        raise ReportError(f"{path}, line {line}, column {name!r}: expected a number or nothing, found {cell[:40]!r}.") from error
    return np.inf if np.isnan(value) else value
