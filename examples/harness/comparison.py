"""What finished runs of several arms say together: means and spreads over seeds, Δm, and a table of them."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arms import SINGLE, Run
from harness.checkpoint import atomic_write
from harness.delta import delta_m
from harness.errors import RunError
from harness.log import read_log
from harness.metric import Metric
from harness.run_folder import RunFolder, read_json
from harness.run_table import Row, read_table

DELTA = Metric("all/Δm", unit=" %")
CONFLICTS = Metric("all/share_of_steps_in_conflict")  # neither good nor bad
OWN = {"out", "resume", "seed", "method", "balancer", "tasks", "device", "workers"}  # arguments in which runs may differ


@dataclass(frozen=True)
class Finished:
    """A finished run: its table, and the share of logged steps in which some pair of gradients conflicted (NaN for one task)."""

    run: Run
    rows: tuple[Row, ...]
    conflicts: float

    @property
    def values(self) -> dict[str, float]:
        return {row.metric.name: row.value for row in self.rows}


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of an arm: mean and sample standard deviation (NaN for one seed)."""

    mean: float
    deviation: float
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan"), tuple(values))


def collect(runs: Sequence[Run], out: Path) -> list[Finished]:
    """The runs that are finished, read from their folders.

    Raises:
        RunError: two of them were trained with different options beside the arm's own.
    """
    finished, first = [], None
    for run in runs:
        folder = RunFolder.existing(run.folder(out))
        if not folder.table.is_file():
            continue
        arguments = read_json(folder.config)["arguments"]
        common = {name: value for name, value in arguments.items() if name not in OWN}
        first = first or (folder.path, common)
        if different := sorted(name for name in common | first[1] if common.get(name) != first[1].get(name)):
            raise RunError(
                f"{folder.path} and {first[0]} cannot be compared: they differ in {', '.join(different)}; delete one, or choose "
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
        if one.run.arm.startswith(f"{SINGLE}-"):
            for name, value in one.values.items():
                values.setdefault(name, []).append(value)
    return {name: statistics.fmean(these) for name, these in values.items()}


def summarize(finished: Sequence[Finished]) -> tuple[list[Metric], dict[str, dict[str, Summary]]]:
    """The metrics in order, Δm and the rate of conflicts behind them where they exist, and {arm: {metric: over its seeds}}."""
    together = [one for one in finished if not one.run.arm.startswith(f"{SINGLE}-")]
    metrics = {row.metric.name: row.metric for one in together for row in one.rows}
    alone = baseline(finished)
    comparable = [metric for name, metric in metrics.items() if alone.get(name)]
    values: dict[str, dict[str, list[float]]] = {}
    for one in together:
        found = one.values
        if comparable and all(metric.name in found for metric in comparable):
            found[DELTA.name] = delta_m(found, alone, comparable)
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
