"""How the report's panels look: colours, curves of any length, legends for any names."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradsurgery.report.series import BINS, edges, running_mean

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe & Ito: safe for color-blind readers
STYLES = ("-", "--", ":", "-.")  # one after the other, as the colors are used up
INK, FAINT = "#1f2430", "#8a90a0"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 8.0, "axes.titlesize": 9.0, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 8.0, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.5, "axes.edgecolor": "#c8ccd6",
    "axes.labelcolor": INK, "xtick.color": "#c8ccd6", "ytick.color": "#c8ccd6", "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "text.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e7e9ef",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.unicode_minus": True, "axes.formatter.use_mathtext": False,
}  # fmt: skip
LINE = 0.16  # inches, of a legend
LONGEST = 26  # characters of a name


def color(place: int) -> str:
    """Of the task or pair at a place."""
    return COLORS[place % len(COLORS)]


def style(place: int) -> str:
    """Of its line."""
    return STYLES[place // len(COLORS) % len(STYLES)]


def short(name: str) -> str:
    """A name as it can stand in a picture: on one line, not too long, and not hidden as Matplotlib hides what begins with _."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    cut = plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
    return f"\u2009{cut}" if cut.startswith("_") else cut


def curve(axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], place: int, label: str) -> None:
    """The running mean, over the values themselves, or where they are many over the span of each bin."""
    if not len(values):
        return
    if len(values) <= BINS:
        axes.plot(steps, values, color=color(place), alpha=0.3, linewidth=0.7)
    else:
        cuts = edges(len(values))[:-1]
        low, high = np.minimum.reduceat(values, cuts), np.maximum.reduceat(values, cuts)
        axes.fill_between(steps[cuts], low, high, color=color(place), alpha=0.15, linewidth=0)
    line(axes, steps, running_mean(values), place, label)


def line(axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], place: int, label: str) -> None:
    """One line of at most BINS points; a single one is a dot."""
    cuts = edges(len(values))[:-1] if len(values) > BINS else np.arange(len(values))
    marker = "o" if len(values) == 1 else ""
    axes.plot(
        steps[cuts], values[cuts], style(place), color=color(place), linewidth=1.6, label=short(label), marker=marker, markersize=4
    )


def legend(axes: Axes, *, beside: bool = False) -> None:
    """Under the picture, in as many columns as the names leave room for, with the picture as much higher; or beside the panel."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    if not handles or not isinstance(figure, Figure):
        return
    longest = max(len(label) for label in labels)
    columns = max(1, min(len(labels), 4 if longest <= 9 else 3 if longest <= 14 else 2 if longest <= 26 else 1))
    if beside:
        drawn = axes.legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        drawn = figure.legend(
            handles, labels, frameon=False, loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2
        )
        figure.set_figheight(figure.get_figheight() + LINE * -(-len(labels) // columns))
    for text in drawn.get_texts():
        text.set_parse_math(False)
