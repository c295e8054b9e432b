"""The run's log: `log.csv` with fixed columns, and the same numbers for TensorBoard."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from harness.errors import RunError


class RunLog:
    """Rows of numbers by step. Cells that a row does not have stay empty; numbers are written so that they read back exactly.

    A checkpoint records `position()`; resuming from it cuts off what was logged afterwards, so no step appears twice.
    """

    def __init__(self, path: Path, columns: Sequence[str], tensorboard: Path, *, position: int = 0, step: int = 0) -> None:
        """Start (position 0) or continue the log at byte `position`, after step `step`."""
        self.columns = ("step", "epoch", *columns)
        length = path.stat().st_size if path.exists() else 0
        if length < position:
            raise RunError(
                f"{path}: holds {length} bytes, but the checkpoint was written when it held {position}; "
                "restore the file, or start the run again in another folder."
            )
        self._file = open(path, "a+b")  # noqa: SIM115 - stays open for the run, until close()
        self._file.truncate(position)
        if position == 0:
            self._write(self.columns)
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def _write(self, cells: Sequence[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self._file.write(line.getvalue().encode())

    def row(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one row; every key must be one of the columns."""
        if unknown := sorted(set(values) - set(self.columns)):
            raise ValueError(f"log row: no columns named {unknown}; there are {list(self.columns)}")
        cells: dict[str, str] = {"step": str(step), "epoch": str(epoch)}
        cells.update((name, repr(float(value))) for name, value in values.items())
        self._write([cells.get(name, "") for name in self.columns])
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def position(self) -> int:
        """Bytes logged so far, all of them on disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


class NoLog:
    """What a process that does not write has in the place of a RunLog."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = ("step", "epoch", *columns)

    def row(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def position(self) -> int:
        """0: what counts is the first process's."""
        return 0

    def close(self) -> None:
        """Nothing."""


def read_log(path: Path) -> dict[str, dict[int, float]]:
    """log.csv as {column: {step: value}}, empty cells left out."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        series: dict[str, dict[int, float]] = {name: {} for name in reader.fieldnames or () if name != "step"}
        for row in reader:
            for name, cells in series.items():
                if row[name]:
                    cells[int(row["step"])] = float(row[name])
    return series
