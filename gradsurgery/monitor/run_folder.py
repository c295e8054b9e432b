"""A run folder: ``log.csv``, a row a step, ``layers.csv``, a row a layer and window, and ``config.json``, what ran."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .rows import Row, window_of_layers
from .telling import tell

_ORDER = (
    "step", "steps", "layer", "epoch", "lr", "loss/", "balance/", "variance/", "weight/", "norm/", "norm", "cosine/",
    "conflict_rate/", "conflicts", "conflict_rate", "nonfinite", "absent", "norm_mean", "norm_deviation", "converged", "stationary",
)  # fmt: skip
_open: set[Path] = set()  # the folders that monitors of this process write to
_lock = threading.RLock()  # a monitor that the garbage collector finds meanwhile closes on the same thread
_OURS = "gradsurgery.Monitor"


class RunFolder:
    """Writes rows to a folder.

    A column that comes later is put in, for which a file is written anew, beside the old one, and takes its place. Rows of a step
    that is there already, and of those after it, are replaced, so that a resumed run goes on. A last line that was torn, as the
    process was killed, is left out. A run that begins anew where there was one keeps that one's files as ``log.previous.csv`` and
    ``layers.previous.csv``, and says so.

    Args:
        folder: made when the first rows come; what lies in it of an earlier run is gone on with.
        settings: of the run, for ``config.json``; one that somebody else wrote is left alone.

    Raises:
        ValueError: another monitor of this process writes there, the path is a file, or its ``log.csv`` is no such log.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        self._settings = settings
        self._begun = False
        self._key = self.folder.resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"Monitor: expected a folder, found the file {self.folder}.")
        self._log, self._layers = Table(self.folder / "log.csv"), Table(self.folder / "layers.csv")
        with _lock:
            if self._key in _open:
                raise ValueError(
                    f"Monitor: expected a folder that no other monitor of this process writes to, found {self.folder}, where one "
                    "does. close() that one first, or name another folder."
                )
            _open.add(self._key)

    def __str__(self) -> str:
        return str(self.folder)

    def norms(self, before: int, count: int) -> list[tuple[int, float]]:
        """|out| of the last steps before a step, as far as they are in the log and finite."""
        return self._log.last("norm", before, count)

    def write(self, rows: Sequence[Row]) -> None:
        """Rows of ascending steps; those that the log has of these steps, and later ones, are dropped."""
        first = rows[0]
        if not self._begun:
            self._begin(first.step)
        if not first.amends:  # else the step is in its window already
            self._layers.cut(first.step)
        cells = [{"step": str(row.step), **_cells(row.values)} for row in rows]
        self._log.write(first.step, cells, amends=first.amends)
        grouped = [row for row in rows if row.layers is not None and not row.amends]
        if grouped:
            last, means = str(grouped[-1].step), window_of_layers(grouped)
            cells = [{"step": last, "steps": str(count), "layer": layer, **_cells(values)} for layer, count, values in means]
            self._layers.write(grouped[0].step, cells)

    def _begin(self, first: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = self._log.steps()
        if earlier and earlier[0] >= first:
            kept = [table.put_aside().name for table in (self._log, self._layers) if table.path.is_file()]
            tell(
                f"Monitor: {self.folder} held {len(earlier)} steps of an earlier run, up to {earlier[-1]}, and this one begins "
                f"anew at {first}. They are kept as {' and '.join(kept)}. To go on with a run, load the aggregator's state_dict "
                "before."
            )
        config = self.folder / "config.json"
        if not config.is_file() or _is_ours(config):
            part = config.with_name(config.name + ".part")
            part.write_text(json.dumps({"written_by": _OURS, **self._settings}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, config)
        self._begun = True

    def close(self) -> None:
        """Others may write there."""
        with _lock:
            _open.discard(self._key)


class Table:
    """A CSV file whose first column is a step, in ascending order.

    Args:
        path: of the file, which need not exist.

    Raises:
        ValueError: there is one with another first column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._last = -1  # the last step in the file
        self._size: int | None = None  # of the file as it was left here; None: it has not been looked at
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                columns = next(csv.reader(file), None)
            if columns is not None and columns[:1] != ["step"]:
                found = repr(columns[0]) if columns else "an empty line"
                raise ValueError(f"{path}: expected a log whose first column is 'step', found {found}. Name another folder.")

    def steps(self) -> list[int]:
        """Those in the file, ascending."""
        return [int(row[0]) for row in self._look()]

    def put_aside(self) -> Path:
        """Leaves the file under another name, which an earlier one loses, and begins anew."""
        previous = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
        os.replace(self.path, previous)
        self._columns, self._last, self._size = [], -1, None
        return previous

    def cut(self, first: int) -> None:
        """Drops rows from step ``first`` on."""
        if self._size is None or self._size != _size(self.path):
            self._look()
        if first <= self._last:
            self.write(first, [])

    def write(self, first: int, rows: Sequence[Mapping[str, str]], *, amends: bool = False) -> None:
        """Drops rows from step ``first`` on, and appends; with ``amends`` the first keeps what it had beside."""
        if self._size is None or self._size != _size(self.path):
            self._look()
        new = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in self._columns]
        if new or first <= self._last:
            found = [dict(zip(self._columns, row, strict=True)) for row in self._look()]
            if amends and (same := [row for row in found if int(row["step"]) == first]):
                rows = [{**{name: cell for name, cell in same[0].items() if cell}, **rows[0]}, *rows[1:]]
            old = [row for row in found if int(row["step"]) < first]
            self._columns = sorted([*self._columns, *new], key=_rank)
            header = dict(zip(self._columns, self._columns, strict=True))
            self._replace(_lines(self._columns, [header, *old, *rows]))
            self._last = int((rows or old)[-1]["step"]) if rows or old else -1
        elif rows:
            with open(self.path, "ab") as file:
                file.write(_lines(self._columns, rows))
            self._last = int(rows[-1]["step"])
        self._size = _size(self.path)

    def last(self, column: str, before: int, count: int) -> list[tuple[int, float]]:
        """Steps, and finite numbers of a column, of the last rows before a step."""
        rows = self._look()
        if column not in self._columns:
            return []
        place = self._columns.index(column)
        found = [(int(row[0]), float(row[place])) for row in rows if int(row[0]) < before and row[place]]
        return [(step, number) for step, number in found if math.isfinite(number)][-count:]

    def _look(self) -> list[list[str]]:
        """Takes in what the file holds, its rows, but for a torn last line, which is taken out."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline="")))
        self._columns, rows = (lines[0], lines[1:]) if lines else ([], [])
        self._last = int(rows[-1][0]) if rows else -1
        if whole != content:
            self._replace(whole)
        self._size = _size(self.path)
        return rows

    def _replace(self, content: bytes) -> None:
        part = self.path.with_name(self.path.name + ".part")
        part.write_bytes(content)
        os.replace(part, self.path)


def _is_ours(config: Path) -> bool:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("written_by") == _OURS


def _cells(values: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(value) for name, value in values.items()}


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([row.get(name, "") for name in columns] for row in rows)
    return text.getvalue().encode("utf-8")


def _rank(name: str) -> int:
    """Where a column stands among others."""
    kind = name if name in _ORDER else name.split("/", 1)[0] + "/"
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
