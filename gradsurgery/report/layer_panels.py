"""Conflict by layers: a heat map of each pair over the steps, and bars over the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.axes import FAINT, color, short
from gradsurgery.report.layers import Layers
from gradsurgery.report.series import edges

ROWS = 60  # of more layers, those with a common prefix share a row
FEWEST = 10  # rows: where prefixes leave fewer, layers in a row share one
WIDEST = 200  # columns; more windows are averaged
MAP = "RdBu"  # red is conflict, blue agreement: told apart with any colour vision


class Grid(NamedTuple):
    """Means of a pair's cosine. [R, C], with the rows' names and the last step of each column"""

    names: tuple[str, ...]
    ends: NDArray[np.int64]
    values: NDArray[np.float64]


def grid(layers: Layers, one: str, other: str) -> Grid:
    """At most ROWS rows and WIDEST columns."""
    values = layers.column(f"cosine/{layers.pair(one, other)}")
    names, rows = grouped(layers.names)
    cuts = edges(len(layers.ends), WIDEST)
    columns = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    weights = np.where(np.isfinite(values), layers.counts, 0.0)
    totals, counts = np.zeros((2, len(names), len(cuts) - 1))
    places = (rows[:, None], columns[None])
    np.add.at(totals, places, np.nan_to_num(values) * weights)
    np.add.at(counts, places, weights)
    with np.errstate(invalid="ignore"):
        return Grid(names, layers.ends[cuts[1:] - 1], totals / counts)


def grouped(names: Sequence[str], most: int = ROWS) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Rows for the layers, in their order: one each, one a common prefix, or one a few in a row; and the row of each. [L]"""
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(deepest, 0, -1):
        keys = [".".join(name.split(".")[:depth]) for name in names]
        rows = list(dict.fromkeys(keys))
        if len(rows) <= most and (len(rows) >= FEWEST or len(rows) == len(names)):
            return tuple(rows), np.array([rows.index(key) for key in keys])
    count = min(most, len(names))
    places = np.arange(len(names)) * count // len(names)
    firsts = [int(np.flatnonzero(places == row)[0]) for row in range(count)]
    return tuple(f"{names[first]} …" for first in firsts), places


def heat_map(axes: Axes, found: Grid, reach: float) -> AxesImage:
    """Layers from the first at the top, windows of steps from left to right; grey where the pair had no cosine."""
    axes.set_facecolor("#e3e5ea")
    image = axes.imshow(found.values, cmap=MAP, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    count = len(found.names)
    every = -(-count // 30)
    axes.set_yticks(range(0, count, every), [short(words.layer(name)) for name in found.names[::every]])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    columns = len(found.ends)
    places = np.unique(np.linspace(0, columns - 1, min(columns, 5)).astype(int))
    axes.set_xticks(places, [f"{found.ends[place]:,}" for place in places])
    axes.set_xlabel("step (end of the window)")
    axes.grid(False)
    return image


def reach(grids: Sequence[Grid]) -> float:
    """The largest |cosine|, so that all maps share one scale around zero."""
    values = np.concatenate([found.values.ravel() for found in grids])
    known = np.abs(values[np.isfinite(values)])
    return float(max(known.max(), 0.1)) if len(known) else 1.0


def bars(axes: Axes, grids: Sequence[Grid], labels: Sequence[str]) -> None:
    """The mean cosine of each layer over the run, a dot a pair, on one line a layer."""
    count = len(grids[0].names)
    for place, (found, label) in enumerate(zip(grids, labels, strict=True)):
        known = np.isfinite(found.values)
        means = np.where(known, found.values, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        heights = np.arange(count) + 0.16 * (place - (len(grids) - 1) / 2)
        axes.hlines(heights, 0, means, color=color(place), linewidth=1.2, alpha=0.6)
        axes.plot(means, heights, "o", color=color(place), markersize=4, label=short(label))
    axes.axvline(0, color=FAINT, linewidth=0.9)
    every = -(-count // 30)
    axes.set_yticks(range(0, count, every), [short(words.layer(name)) for name in grids[0].names[::every]])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel("mean cosine (left of 0: conflict)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
