"""What the panels of a report show, drawn on given axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.axes import FAINT, color, curve, line, short
from gradsurgery.report.facts import Conflict
from gradsurgery.report.run import Run
from gradsurgery.report.series import BINS, edges, running_mean

DRAWN = 7  # pairs with a colour of their own: those that conflict most; the others are grey


def cosines(axes: Axes, run: Run, pairs: Sequence[Conflict]) -> None:
    """cos(g_a, g_b) over the steps; stretches of conflict in the pair's colour along the bottom."""
    shown, rest = _split(pairs)
    for pair in rest:
        steps, values = run.series(pair.column)
        _grey(axes, steps, running_mean(values), len(rest))
    for place, pair in enumerate(shown):
        curve(axes, *run.series(pair.column), place, pair.name)
    low, high = axes.get_ylim() if axes.has_data() else (-1.0, 1.0)
    low, high = min(low, -0.05), max(high, 0.05)
    axes.axhspan(low, 0, color="#d55e00", alpha=0.05, linewidth=0)
    axes.axhline(0, color=FAINT, linewidth=0.9)
    for place, pair in enumerate(shown):
        height = low + (high - low) * 0.02 * (place + 0.8)
        for stretch in pair.stretches:
            axes.plot([stretch.first, stretch.last], [height, height], color=color(place), linewidth=3.2, solid_capstyle="butt")
    axes.set(ylim=(low, high), ylabel="cosine")
    _steps(axes)


def rates(axes: Axes, run: Run, pairs: Sequence[Conflict]) -> None:
    """The share of steps with a negative cosine, as a running mean."""
    shown, rest = _split(pairs)
    for pair in rest:
        steps, values = run.series(pair.column)
        _grey(axes, steps, 100 * running_mean((values < 0).astype(float)), len(rest))
    for place, pair in enumerate(shown):
        steps, values = run.series(pair.column)
        line(axes, steps, 100 * running_mean((values < 0).astype(float)), place, pair.name)
    axes.axhline(50, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(ylim=(-3, 103), ylabel="steps in conflict [%]")
    _steps(axes)


def lengths(axes: Axes, run: Run) -> None:
    """|g_t| of every task, on a logarithmic scale; zeros are left out."""
    for place, task in enumerate(run.tasks):
        steps, values = run.series(f"norm/{task}")
        positive = values > 0
        curve(axes, steps[positive], values[positive], place, task)
    if axes.has_data():
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(ylabel="gradient length")
    _steps(axes)


def by_task(axes: Axes, run: Run, kind: str, ylabel: str) -> None:
    """A column of every task, such as its weight."""
    for place, task in enumerate(run.tasks):
        curve(axes, *run.series(f"{kind}/{task}"), place, task)
    axes.set(ylabel=ylabel)
    low, high = axes.get_ylim()
    if high - low < 0.02 * max(abs(low), abs(high)):  # a constant, or nearly: its rounding is no curve
        middle = (low + high) / 2
        axes.set_ylim(middle - max(abs(middle), 1e-9) * 0.5, middle + max(abs(middle), 1e-9) * 0.5)
    _steps(axes)


def loss(axes: Axes, run: Run, task: str, place: int, unit: str) -> None:
    """One task's loss on a scale of its own; from zero where it is never below."""
    steps, values = run.series(f"loss/{task}")
    curve(axes, steps, values, place, "running mean")
    if len(values) and values.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.set_title(short(task), parse_math=False, color=color(place), fontsize=8)
    axes.set_ylabel(unit, parse_math=False)
    _steps(axes, label="")


def _split(pairs: Sequence[Conflict]) -> tuple[list[Conflict], list[Conflict]]:
    """Those to draw in colour, in their order, and the others."""
    here = [pair for pair in pairs if pair.steps]
    worst = sorted(here, key=lambda pair: (-(pair.lasting > 0), pair.mean.value))[:DRAWN]
    return [pair for pair in here if pair in worst], [pair for pair in here if pair not in worst]


def _grey(axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], count: int) -> None:
    """One of the other pairs; the last one drawn stands for all of them in the legend."""
    for other in axes.get_lines():
        other.set_label("")
    cuts = edges(len(values))[:-1] if len(values) > BINS else np.arange(len(values))
    label = f"{count} other pair{'s' if count > 1 else ''}"
    axes.plot(steps[cuts], values[cuts], color=FAINT, linewidth=0.6, alpha=0.5, label=label)


def _power(value: float) -> str:
    """0.02, 500, 10⁻⁶, 2·10⁷"""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = f"10{str(int(exponent)).translate(words.SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _steps(axes: Axes, label: str = "step") -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
