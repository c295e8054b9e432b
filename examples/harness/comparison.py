"""What finished runs of several arms say together: means and spreads over seeds, Δm, and a table of them."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.arguments import saved_arguments
from harness.arms import Run
from harness.checkpoint import atomic_write
from harness.delta import delta_m
from harness.errors import RunError
from harness.log import read_log
from harness.metric import Metric
from harness.run_folder import RunFolder
from harness.run_table import Row, read_table

DELTA = Metric("all/Δm", unit=" %")
CONFLICTS = Metric("all/share_of_steps_in_conflict")  # neither good nor bad
OWN = {"out", "resume", "seed", "method", "balancer", "device", "workers"}  # arguments in which runs may differ


@dataclass(frozen=True)
class Finished:
    """A finished run: its table, and the share of logged steps in which some pair of gradients conflicted (NaN without steps)."""

    run: Run
    rows: tuple[Row, ...]
    conflicts: float

    @property
    def values(self) -> dict[str, float]:
        return {row.metric.name: row.value for row in self.rows}


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of an arm: mean and sample standard deviation (NaN for one seed, or a value that is not finite)."""

    mean: float
    deviation: float
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        # Where something is not finite, statistics.stdev raises AttributeError (up to Python 3.11) and fmean may, too.
        spread = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else float("nan")
        return cls(sum(values) / len(values), spread, tuple(values))


def collect(runs: Sequence[Run], out: Path) -> list[Finished]:
    """The runs that are finished, read from their folders.

    Raises:
        RunError: two of them were trained with different options beside the arm's own, or, unless one is of a task alone, for
            different tasks.
    """
    finished: list[Finished] = []
    firsts: dict[bool, tuple[Path, dict[str, Any]]] = {}  # by whether it is of one task alone
    for run in runs:
        folder = RunFolder.existing(run.folder(out))
        if not folder.table.is_file():
            continue
        arguments = saved_arguments(folder)
        firsts.setdefault(run.alone, (folder.path, arguments))
        for alone, (first, others) in firsts.items():
            names = (arguments.keys() | others.keys()) - OWN - ({"tasks"} if alone or run.alone else set())
            if different := sorted(name for name in names if arguments.get(name) != others.get(name)):
                raise RunError(
                    f"{folder.path} and {first} cannot be compared: they differ in {', '.join(different)}; delete one, or choose "
                    "another --out."
                )
        conflicts = list(read_log(folder.log)["conflicts"].values())
        share = statistics.fmean(value > 0 for value in conflicts) if conflicts else float("nan")
        finished.append(Finished(run, tuple(read_table(folder.table)), share))
    return finished


def baseline(finished: Sequence[Finished]) -> dict[str, float]:
    """Every metric's mean over the seeds of the runs that trained its task alone."""
    values: dict[str, list[float]] = {}
    for one in finished:
        if one.run.alone:
            for name, value in one.values.items():
                values.setdefault(name, []).append(value)
    return {name: sum(these) / len(these) for name, these in values.items()}


def comparable(metrics: Sequence[Metric], alone: Mapping[str, float]) -> list[Metric]:
    """What Δm is the mean over: all metrics with a baseline other than 0; none when some task has no baseline yet.

    Without the last, a table in which one single run is missing would show another number under the same name.
    """
    if {metric.task for metric in metrics} != {metric.task for metric in metrics if metric.name in alone}:
        return []
    return [metric for metric in metrics if alone.get(metric.name, 0.0) != 0]


def explanation(finished: Sequence[Finished]) -> str:
    """What Δm compares with, in a sentence; empty when there is no Δm."""
    metrics, _ = summarize(finished)
    if DELTA not in metrics:
        return ""
    alone = baseline(finished)
    measured = [metric for metric in metrics if metric.name in alone]
    used = comparable(measured, alone)
    sentence = f"Δm: the mean change over {len(used)} metrics against each task alone, which reached, over its seeds: "
    sentence += "; ".join(f"{metric.task} {metric.words} {alone[metric.name]:.4g}{metric.unit}" for metric in used) + "."
    if left_out := [f"{metric.task} {metric.words}" for metric in measured if metric not in used]:
        sentence += f" Left out, as there is no change relative to 0: {', '.join(left_out)}."
    return sentence


def summarize(finished: Sequence[Finished]) -> tuple[list[Metric], dict[str, dict[str, Summary]]]:
    """The metrics in order, Δm and the rate of conflicts behind them where they exist, and {arm: {metric: over its seeds}}."""
    together = [one for one in finished if not one.run.alone]
    metrics = {row.metric.name: row.metric for one in together for row in one.rows}
    alone = baseline(finished)
    compared = comparable(list(metrics.values()), alone)
    values: dict[str, dict[str, list[float]]] = {}
    for one in together:
        found = one.values
        if compared and all(metric.name in found for metric in compared):
            found[DELTA.name] = delta_m(found, alone, compared)
        if one.conflicts == one.conflicts:  # no NaN
            found[CONFLICTS.name] = one.conflicts
        for name, value in found.items():
            values.setdefault(one.run.arm, {}).setdefault(name, []).append(value)
    summaries = {arm: {name: Summary.of(these) for name, these in by_name.items()} for arm, by_name in values.items()}
    present = {name for by_name in summaries.values() for name in by_name}
    return [*metrics.values(), *(extra for extra in (DELTA, CONFLICTS) if extra.name in present)], summaries


def write_csv(path: Path, metrics: Sequence[Metric], summaries: Mapping[str, Mapping[str, Summary]]) -> None:
    """One row an arm and metric: the mean, the sample standard deviation, and every seed's value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "metric", "mean", "deviation", "seeds"])
    for arm, by_name in summaries.items():
        for metric in metrics:
            if metric.name in by_name:
                one = by_name[metric.name]
                seeds = " ".join(f"{value:.6g}" for value in one.seeds)
                writer.writerow([arm, metric.name, f"{one.mean:.6g}", f"{one.deviation:.3g}", seeds])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def markdown(metrics: Sequence[Metric], summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """The table for a page: an arm a row, mean ± sample standard deviation."""
    heads = [heading(metric) for metric in metrics]
    lines = [f"| arm | seeds | {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * len(heads)]
    for arm, by_name in summaries.items():
        seeds = max(len(one.seeds) for one in by_name.values())
        cells = [_cell(by_name.get(metric.name)) for metric in metrics]
        lines.append(f"| {arm} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def heading(metric: Metric) -> str:
    """The metric in words, its unit, and which way is better."""
    task = "" if metric.task == "all" else f"{metric.task} "
    unit = f" [{metric.unit.strip()}]" if metric.unit else ""
    arrow = "" if metric is CONFLICTS else " ↑" if metric.higher_is_better else " ↓"
    return f"{task}{metric.words}{unit}{arrow}"


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    spread = "" if summary.deviation != summary.deviation else f" ± {summary.deviation:.3f}"
    return f"{summary.mean:.3f}{spread}"
