"""Which tables a path means: a training and a validation table, from a folder that holds both, or from one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness.errors import DataError

from text.data.tables import TEXT, Table, read_table

HELD_OUT = 0.2
"""The share of a single file that becomes the validation set."""

_SUFFIXES = (".csv", ".tsv")
Split = tuple[Table, Table]


def open_path(option: str, path: Path, tasks: Sequence[str], seed: int) -> Split:
    """Training and validation table of a folder with train and val as .csv or .tsv; of a single file, a fifth is held out.

    Args:
        option: what named the path, for errors.
        path: the folder, or the file.
        tasks: the columns of labels.
        seed: of which rows of a single file are held out.
    """
    if path.is_dir():
        return read_table(_named(option, path, "train"), tasks), read_table(_named(option, path, "val"), tasks)
    if not path.exists():
        raise DataError(
            f"{option}: expected a folder with train.csv and val.csv (or .tsv), or one such file, with columns "
            f"{', '.join((TEXT, *tasks))}; found nothing at {path}."
        )
    return _held_out(read_table(path, tasks), seed)


def _named(option: str, folder: Path, stem: str) -> Path:
    present = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
    if len(present) == 1:
        return present[0]
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing in it"
    raise DataError(f"{option}: expected one of {stem}.csv and {stem}.tsv in {folder}, found {inside}.")


def _held_out(table: Table, seed: int) -> Split:
    count = len(table.texts)
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, round(HELD_OUT * count))
    if held >= count:
        raise DataError(f"{table.name}: expected at least two lines of data, of which some are held out, found {count}.")
    return table.take(sorted(order[held:].tolist())), table.take(sorted(order[:held].tolist()))


def joined(tables: Sequence[Table]) -> Table:
    """Separate data sets as one table: each text has a label only for the tasks of its own data set."""
    tasks = [task for table in tables for task in table.labels]
    return Table(
        " + ".join(table.name for table in tables),
        tuple(text for table in tables for text in table.texts),
        {task: tuple(label for table in tables for label in table.labels.get(task, (None,) * len(table.texts))) for task in tasks},
    )
