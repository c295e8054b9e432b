"""Curves that every trainer draws from its log: losses, conflict."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.problem import Series

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe & Ito: safe for color-blind readers


def plot_losses(log: Series, units: Mapping[str, str], path: Path, *, title: str) -> None:
    """One panel a task: its training loss at every logged step, faint, and the running mean."""
    figure = Figure(figsize=(4.8 * len(units), 3.6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, len(units), squeeze=False)[0]
    for axes, (task, unit), color in zip(panels, units.items(), _colors(len(units)), strict=True):
        steps, values = _arrays(log[f"loss/{task}"])
        _curve(axes, steps, values, color, "running mean")
        axes.set(title=task, xlabel="step", ylabel=f"training loss [{unit}]")
        axes.set_ylim(bottom=0 if len(values) and values.min() >= 0 else None)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=120)


def plot_conflict(log: Series, tasks: Sequence[str], path: Path, *, title: str, place: str) -> None:
    """Cosines between the tasks' gradients, how often they conflict, and the gradients' lengths, over the steps."""
    figure = Figure(figsize=(8, 8.4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    cosine, rate, norm = figure.subplots(3, 1, sharex=True)
    pairs = list(combinations(tasks, 2))
    window = 1
    for (one, other), color in zip(pairs, _colors(len(pairs)), strict=True):
        steps, values = _arrays(log[f"cosine/{one}-{other}"])
        window = max(window, _window(len(values)))
        _curve(cosine, steps, values, color, f"{one} – {other}")
        rate.plot(steps, 100 * _smooth((values < 0).astype(float)), color=color, label=f"{one} – {other}")
    cosine.axhline(0, color="black", linewidth=0.8)
    low, high = cosine.get_ylim()
    low, high = min(low, -0.05), max(high, 0.05)
    cosine.axhspan(low, 0, color="black", alpha=0.06, linewidth=0)
    cosine.set(ylim=(low, high), ylabel="cosine of the gradients", title=f"Agreement at {place} (shaded: conflict)")
    rate.set(ylim=(-3, 103), ylabel="steps in conflict [%]", title=f"Conflict rate (running mean of {window} logged steps)")
    for task, color in zip(tasks, _colors(len(tasks)), strict=True):
        steps, values = _arrays(log[f"norm/{task}"])
        _curve(norm, steps, np.where(values > 0, values, np.nan), color, task)
    norm.set(yscale="log", xlabel="step", ylabel="gradient norm", title=f"Length of each task's gradient at {place}")
    for axes in (cosine, rate, norm):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _arrays(series: Mapping[int, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.fromiter(series.keys(), np.float64, len(series)), np.fromiter(series.values(), np.float64, len(series))


def _window(count: int) -> int:
    return max(1, count // 20)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean over a centered window of a twentieth of the run, shorter at both ends; NaN is left out."""
    if not len(values):
        return values
    window = _window(len(values))
    kernel, known = np.ones(window), np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _curve(axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], color: str, label: str) -> None:
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=label)
