"""Files of texts and their labels: CSV (commas) and TSV (tabs), UTF-8, with a line of column names; errors by file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError

TEXT = "text"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """Texts, and for each task a label or None for every one of them."""

    name: str
    texts: tuple[str, ...]
    labels: dict[str, tuple[str | None, ...]]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Table:
        """The table of these rows."""
        return Table(
            self.name,
            tuple(self.texts[row] for row in rows),
            {task: tuple(column[row] for row in rows) for task, column in self.labels.items()},
        )

    def first(self, count: int | None) -> Table:
        """The first `count` rows, or all there are."""
        return self if count is None else self.take(range(min(count, len(self))))

    def only(self, tasks: Sequence[str]) -> Table:
        """The table with the labels of these tasks."""
        return Table(self.name, self.texts, {task: self.labels[task] for task in tasks})


def read_table(path: Path, tasks: Sequence[str]) -> Table:
    """The texts of a .csv or .tsv file and their labels; a cell that is empty or blank is a label that is missing.

    Both kinds are quoted alike: a cell in double quotes may hold the delimiter, line breaks and doubled quotes. Columns other than
    `text` and `tasks` are not looked at.

    Raises:
        DataError: no such file, undecodable bytes, columns that are missing or named twice, a quote without its end, a line with
            more or fewer cells than there are columns, a blank text, or no line of data.
    """
    if path.suffix.lower() not in _DELIMITERS:
        raise DataError(f"{path}: expected a .csv or .tsv file, found the suffix {path.suffix!r}; rename or convert it.")
    rows = _rows(path, _text(path))
    header = next(rows, (1, []))[1]
    if not header:
        raise DataError(f"{path}: expected columns {', '.join((TEXT, *tasks))}, found an empty file.")
    columns = [name.strip() for name in header]
    if missing := [name for name in (TEXT, *tasks) if name not in columns]:
        raise DataError(
            f"{path}, line 1: expected columns {', '.join((TEXT, *tasks))}, found no {' and no '.join(missing)} among "
            f"{columns}; name them in the first line, separated by {_separator(path)}."
        )
    if twice := [name for name in (TEXT, *tasks) if columns.count(name) > 1]:
        raise DataError(f"{path}, line 1: expected each column once, found {twice[0]!r} several times; rename one.")
    texts: list[str] = []
    labels: dict[str, list[str | None]] = {task: [] for task in tasks}
    for line, cells in rows:
        if not cells:  # an empty line
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{path}, line {line}: expected {len(columns)} cells as in line 1, found {len(cells)}; put texts that hold "
                f"{_separator(path)} in double quotes."
            )
        row = dict(zip(columns, cells, strict=True))
        if not row[TEXT].strip():
            raise DataError(f"{path}, line {line}: expected a text, found a blank cell; fill it in or remove the line.")
        texts.append(row[TEXT])
        for task in tasks:
            labels[task].append(row[task].strip() or None)
    if not texts:
        raise DataError(f"{path}: expected at least one line of data, found only column names.")
    return Table(str(path), tuple(texts), {task: tuple(column) for task, column in labels.items()})


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}; check the path.")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8, found the byte 0x{content[error.start]:02x}; save the file as UTF-8."
        ) from error


def _rows(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's cells with the line it starts at."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: the row that starts here is not read ({error}); a double quote needs another at the end "
                "of its cell, and is doubled where it belongs to the text."
            ) from error


def _separator(path: Path) -> str:
    return "commas" if path.suffix.lower() == ".csv" else "tabs"
