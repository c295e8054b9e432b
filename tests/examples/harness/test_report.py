"""A run's note, pictures and table: what they say, and in which order they are written."""

import csv
import json
from collections.abc import Callable
from typing import Any

import pytest
from harness.report import write_report
from harness.training import Training
from matplotlib.image import imread
from rich.console import Console


def test_the_note_says_what_the_log_shows(toy: type[Any], start: Callable[..., Training]) -> None:
    training = start(toy(), "--epochs", "2", "--log-every", "1", "--balancer", "uncertainty")
    training.run()
    write_report(training.problem, training.arguments, training.folder, Console(quiet=True))
    note = training.folder.note.read_text()
    for words in ("## In short", "## Which task dominates", "at the representation", "## Do the tasks conflict", "side and height",
                  "## Did the weights settle", "The uncertainty balancer's loss weights", "The learned σ²"):  # fmt: skip
        assert words in note, words
    for name in ("losses", "conflict"):
        assert imread(training.folder.pictures / f"{name}.png").std() > 0.01


def test_a_score_of_nan_is_never_the_best(toy: type[Any], start: Callable[..., Training]) -> None:
    training = start(toy(), "--epochs", "3")
    assert training.run() is None
    with open(training.folder.log, newline="") as file:
        rows = list(csv.reader(file))
    column = rows[0].index("score")
    scored = [row for row in rows[1:] if row[column]]
    for row, score in zip(scored, ("nan", "0.25", "0.125"), strict=True):
        row[column] = score
    with open(training.folder.log, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    write_report(training.problem, training.arguments, training.folder, Console(quiet=True))
    metrics = json.loads(training.folder.metrics.read_text())
    assert (metrics["best/score"], metrics["best/epoch"]) == (0.25, 2)


def test_the_table_is_written_after_everything_else(
    toy: type[Any], start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(log: object) -> None:
        raise KeyboardInterrupt

    training = start(toy(), "--epochs", "1")
    training.run()
    with monkeypatch.context() as patch:
        patch.setattr(training.problem, "notes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            write_report(training.problem, training.arguments, training.folder, Console(quiet=True))
    assert not training.folder.table.exists(), "a run whose report was cut off would count as finished"
    write_report(training.problem, training.arguments, training.folder, Console(quiet=True))
    assert training.folder.table.is_file()
