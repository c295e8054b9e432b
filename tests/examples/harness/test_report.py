"""Sentences computed from logs with known answers, and curves of awkward logs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.narrative import (
    balance_sentences,
    conflict,
    conflict_sentences,
    dominance_sentences,
    drift,
    shares,
)
from harness.plots import plot_conflict, plot_losses
from harness.report import write_report
from harness.training import Training
from matplotlib.image import imread
from rich.console import Console

TASKS = ("a", "b")


def _log(**columns: list[float]) -> dict[str, dict[int, float]]:
    names = [f"{kind}/{task}" for kind in ("loss", "norm", "weight", "balance") for task in TASKS] + ["cosine/a-b"]
    given = {name: columns.get(name.replace("/", "_").replace("-", "_"), []) for name in names}
    return {name: dict(enumerate(values, start=1)) for name, values in given.items()}


def test_shares_are_means_over_steps() -> None:
    log = _log(norm_a=[3, 1], norm_b=[1, 1], loss_a=[1, 1], loss_b=[1, 3], balance_a=[1, 1], balance_b=[3, 1])
    part = shares(log, TASKS)
    assert part.gradient == pytest.approx({"a": 0.625, "b": 0.375})
    assert part.loss == pytest.approx({"a": 0.25, "b": 0.75})


def test_conflict_counts_negative_cosines() -> None:
    pair = conflict(_log(cosine_a_b=[0.5, -0.25, 0.0, -0.75]), "a", "b")
    assert (pair.steps, pair.rate, pair.lowest) == (4, 0.5, -0.75)
    assert (pair.mean, pair.mean_in_conflict, pair.last_quarter) == pytest.approx((-0.125, -0.5, -0.75))


def test_drift_compares_the_last_two_quarters() -> None:
    settled = drift(_log(weight_a=[9, 9, 2, 2, 1, 1, 1.04, 1.02]), "weight/a")
    assert (settled.third, settled.last) == pytest.approx((1.0, 1.03))
    assert settled.settled
    assert not drift(_log(weight_a=[9, 9, 2, 2, 1, 1, 1.2, 1.2]), "weight/a").settled


def test_sentences_say_what_happened() -> None:
    log = _log(
        norm_a=[4] * 8, norm_b=[1] * 8, loss_a=[1] * 8, loss_b=[3] * 8, cosine_a_b=[-0.5, 0.5] * 4,
        balance_a=[1] * 8, balance_b=[1, 1, 1, 1, 1, 1, 2, 2], weight_a=[1] * 8, weight_b=[1] * 8,
    )  # fmt: skip
    dominance = " ".join(dominance_sentences(log, TASKS, "the representation"))
    assert "a 80%, b 20%" in dominance
    assert "a dominates: its gradient is on average 4.00 times as long as b's" in dominance
    assert "Loss and gradient disagree: b has the larger loss" in dominance
    (pair,) = conflict_sentences(log, TASKS)
    assert "in 50% of 8 logged steps" in pair
    assert "strong conflicts" in pair
    balance, weight = balance_sentences(log, TASKS, balancer="gradnorm", method="pcgrad")
    assert "b 1.000 → 2.000; b still drifted" in balance
    assert weight == "pcgrad's gradient weights stayed at a 1.000, b 1.000."


def test_equal_tasks_and_missing_values_are_said_too() -> None:
    log = _log(norm_a=[1, 1], norm_b=[1, 1], loss_a=[1, 1], loss_b=[1, 1])
    assert any("No task dominates" in sentence for sentence in dominance_sentences(log, TASKS, "the representation"))
    assert conflict_sentences(log, TASKS) == ["a and b never had a gradient in the same logged step."]
    assert balance_sentences(log, TASKS, balancer="none", method="sum") == [
        "No balancer ran: every task's loss entered with weight 1."
    ]
    absent = _log(norm_a=[1.0], loss_a=[1.0])
    assert any("b never had a gradient" in sentence for sentence in dominance_sentences(absent, TASKS, "the representation"))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"loss_a": [1.0], "norm_a": [1.0]},
        {
            "loss_a": [1.0, -2.0] * 50,
            "loss_b": [0.0] * 100,
            "norm_a": [0.0] * 100,
            "norm_b": [1.0] * 100,
            "cosine_a_b": [1.0] * 100,
        },
    ],
    ids=["empty", "one step", "long"],
)
def test_curves_are_drawn_from_any_log(tmp_path: Path, columns: dict[str, Any]) -> None:
    log = _log(**columns)
    plot_losses(log, {"a": "m", "b": "nats"}, tmp_path / "losses.png", title="t")
    plot_conflict(log, TASKS, tmp_path / "conflict.png", title="t", place="the trunk")
    for name in ("losses", "conflict"):
        assert imread(tmp_path / f"{name}.png").std() > 0.01


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
