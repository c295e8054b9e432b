"""table.csv: what a finished run reached in every metric, and what each metric means."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.checkpoint import atomic_write
from harness.errors import RunError
from harness.metric import Metric

COLUMNS = ("metric", "best", "unit", "primary", "floor", "value")


@dataclass(frozen=True)
class Row:
    """A metric, the floor's value and the model's after the last epoch."""

    metric: Metric
    floor: float
    value: float


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows atomically; numbers read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        metric = row.metric
        writer.writerow([metric.name, repr(metric.best), metric.unit, int(metric.primary), repr(row.floor), repr(row.value)])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_table(path: Path) -> list[Row]:
    """Read what `write_table` wrote; RunError when it is something else."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are {lines.fieldnames}")
            return [
                Row(Metric(line["metric"], float(line["best"]), line["unit"], line["primary"] == "1"),
                    float(line["floor"]), float(line["value"]))
                for line in lines
            ]  # fmt: skip
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise RunError(
            f"{path}: not a table of a finished run ({error!r}); delete the run's folder or restore the file."
        ) from error
