"""Texts for multi-task learning: generated reviews, or CSV and TSV files, one for all tasks or one for each."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.errors import RunError

from text.data.sentences import COUNTS, GENERATED, write_reviews
from text.data.sources import Split, joined, open_path
from text.data.tables import Table, read_table

__all__ = ["COUNTS", "GENERATED", "TASKS", "Split", "Table", "joined", "open_splits", "separate"]

TASKS = ("sentiment", "topic")


def separate(arguments: argparse.Namespace) -> bool:
    """Whether each task has a data set of its own."""
    return any(getattr(arguments, task) is not None for task in TASKS)


def open_splits(arguments: argparse.Namespace) -> list[Split]:
    """The training and validation tables that the command line names: one pair for all tasks, or one pair for each.

    Raises:
        RunError: options that exclude each other, or one without its partner.
        DataError: see `read_table` and `open_path`.
    """
    named = [option for option, given in (
        ("--data", arguments.data is not None),
        ("--train-csv/--val-csv", arguments.train_csv is not None or arguments.val_csv is not None),
        ("--sentiment/--topic", separate(arguments)),
    ) if given]  # fmt: skip
    splits = _opened(arguments, named)
    return [(train.first(arguments.train_count), val.first(arguments.val_count)) for train, val in splits]


def _opened(arguments: argparse.Namespace, named: list[str]) -> list[Split]:
    if len(named) > 1:
        raise RunError(f"{' and '.join(named)}: expected one of them, since each names all of the data; leave the others out.")
    if separate(arguments):
        return _one_a_task(arguments)
    if arguments.train_csv is not None or arguments.val_csv is not None:
        if arguments.train_csv is None or arguments.val_csv is None:
            given, other = ("--train-csv", "--val-csv") if arguments.val_csv is None else ("--val-csv", "--train-csv")
            raise RunError(f"{given}: expected {other} beside it; to hold out a part of a single file, pass it by --data.")
        return [(read_table(arguments.train_csv, arguments.tasks), read_table(arguments.val_csv, arguments.tasks))]
    if arguments.data in (None, GENERATED):
        counts = {"train": arguments.train_count or COUNTS["train"], "val": arguments.val_count or COUNTS["val"]}
        train, val = (write_reviews(split, count=counts[split], seed=arguments.seed) for split in ("train", "val"))
        return [(train.only(arguments.tasks), val.only(arguments.tasks))]
    return [open_path("--data", Path(arguments.data), arguments.tasks, arguments.seed)]


def _one_a_task(arguments: argparse.Namespace) -> list[Split]:
    splits = []
    for task in TASKS:
        path = getattr(arguments, task)
        if task in arguments.tasks and path is None:
            raise RunError(
                f"--{task}: expected a data set of its own, as the other task has; name one, or leave {task} out of --tasks."
            )
        if task not in arguments.tasks and path is not None:
            raise RunError(f"--{task} {path}: {task} is not among --tasks {' '.join(arguments.tasks)}; leave one of the two out.")
        if path is not None:
            splits.append(open_path(f"--{task}", path, (task,), arguments.seed))
    return splits
