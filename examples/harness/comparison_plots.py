"""Pictures of a comparison: every seed of every arm in every metric, and how the score went."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradsurgery.report.axes import COLORS
from harness.comparison import Finished, Summary, heading
from harness.log import read_log
from harness.metric import Metric
from harness.run_folder import RunFolder

STYLES = ("-", "--", ":", "-.")  # of the lines, one after the other as the colors are used up


def plot_metrics(metrics: Sequence[Metric], summaries: Mapping[str, Mapping[str, Summary]], path: Path, *, title: str) -> None:
    """One panel a metric: a dot a seed and a bar at the arm's mean. Overlapping dots say that seeds differ as much as arms do."""
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, (1.3 + 0.34 * len(summaries)) * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, metric in zip(panels.flat, metrics, strict=False):
        for place, (by_name, color) in enumerate(zip(summaries.values(), _cycle(len(summaries)), strict=True)):
            if metric.name in by_name:
                one = by_name[metric.name]
                axes.plot(one.seeds, [place] * len(one.seeds), "o", color=color, alpha=0.55, markersize=6, markeredgewidth=0)
                axes.plot([one.mean] * 2, [place - 0.32, place + 0.32], color=color, linewidth=2.2)
        axes.set_title(heading(metric), fontsize=9)
        axes.set_yticks(range(len(summaries)), list(summaries))
        axes.grid(alpha=0.25)
    panels[0][0].invert_yaxis()
    for axes in panels.flat[len(metrics) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=120)


def plot_scores(finished: Sequence[Finished], out: Path, path: Path, *, title: str) -> None:
    """The validation score of every arm over the steps: the mean over its seeds, and the band from the lowest to the highest.

    Runs of a task alone are left out: the score is a mean over tasks, and theirs over other ones.
    """
    by_arm: dict[str, list[dict[int, float]]] = {}
    for one in (one for one in finished if not one.run.alone):
        scores = read_log(RunFolder.existing(one.run.folder(out)).log)["score"]
        by_arm.setdefault(one.run.arm, []).append(scores)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    for place, ((arm, series), color) in enumerate(zip(by_arm.items(), _cycle(len(by_arm)), strict=True)):
        steps = sorted(set.intersection(*(set(one) for one in series)))
        values = np.array([[one[step] for step in steps] for one in series])
        axes.plot(steps, values.mean(0), STYLES[place // len(COLORS) % len(STYLES)], color=color, label=arm)
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="step", ylabel="share of the floors' error removed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]
