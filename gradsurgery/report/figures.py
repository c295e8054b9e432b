"""The report's pictures, small enough to be read on a phone; and those of a trainer's run, from the same panels."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradsurgery.report import layer_panels, panels, words
from gradsurgery.report.axes import STYLE, legend, short
from gradsurgery.report.facts import Conflict, conflicts, start_and_end
from gradsurgery.report.rules.by_layer import layer_conflicts
from gradsurgery.report.run import Run

__all__ = ["Picture", "conflict_figure", "losses_figure", "pictures", "write_png"]

WIDTH = 3.7  # inches: 8 pt are 10.5 px where the picture is 350 px wide
DPI = 220  # twice the pixels that a card of 400 px has
DOTS = 3  # pairs that share the picture of all layers
MAPS = 6  # heat maps, of the pairs that conflict most at some layer


class Picture(NamedTuple):
    """One picture of the page.

    Attributes:
        name: of its file, without .png.
        title: over it.
        caption: how to read it, one sentence.
        alt: what it shows, in words and numbers.
        png: its bytes.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


@contextmanager
def _styled() -> Iterator[None]:
    """The report's style. A script that the font lacks shows as boxes, which is no reason to warn a reader of the page."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def write_png(figure: Figure, path: Path) -> None:
    """Save a figure of this module for a screen."""
    with _styled():
        figure.savefig(path, dpi=120)


def losses_figure(run: Run, units: Mapping[str, str], *, title: str = "", columns: int = 0) -> Figure:
    """One panel a task, each on a scale of its own: losses of different units are not compared.

    Args:
        run: whose losses.
        units: by task, for the axis; tasks without one are drawn, too.
        title: over all.
        columns: of panels; 0: one, or two for more than four tasks.
    """
    tasks = run.tasks
    columns = columns or (1 if len(tasks) <= 4 else 2)
    rows = -(-len(tasks) // columns)
    with _styled():
        width, height = (WIDTH, 1.05) if not title else (3.4, 2.7)
        figure = Figure(figsize=(width * (columns if title else 1), height * rows + (0.4 if title else 0.25)), layout="constrained")
        if title:
            figure.suptitle(title, parse_math=False)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=not title)
        for place, (axes, task) in enumerate(zip(grid.flat, tasks, strict=False)):
            panels.loss(axes, run, task, place, units.get(task, ""))
        for axes in grid.flat[len(tasks) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
    return figure


def conflict_figure(run: Run, *, title: str) -> Figure:
    """Cosines, conflict rates and lengths, one above the other."""
    pairs = conflicts(run)
    with _styled():
        figure = Figure(figsize=(7.6, 9.0), layout="constrained")
        figure.suptitle(title, parse_math=False)
        cosine, rate, length = figure.subplots(3, 1, sharex=True)
        panels.cosines(cosine, run, pairs)
        panels.rates(rate, run, pairs)
        panels.lengths(length, run)
        for axes, heading in (
            (cosine, "Agreement"),
            (rate, "Steps in conflict, running mean,"),
            (length, "Length of each task's gradient"),
        ):
            axes.set_title(f"{heading}{run.at}")
            legend(axes, beside=True)
    return figure


def pictures(run: Run) -> list[Picture]:
    """Those for which the log has numbers, in the page's order."""
    pairs = conflicts(run)
    found = [_losses(run), *_of_pairs(run, pairs), _lengths(run)]
    found += [_by_task(run, *given) for given in (
        ("weight", "Weights of the method", "weight", "What the shared part received is the sum of the gradients times these."),
        ("balance", "Weights of the balancer", "loss weight", "By which each loss was multiplied."),
        ("variance", "Learned σ²", "σ²", "Uncertainty weighting's variances: a loss enters with about 1 / σ²."),
    )]  # fmt: skip
    return [*(one for one in found if one is not None), *_of_layers(run)]


def _panel(draw: Callable[[Axes], None], height: float = 2.4) -> bytes:
    with _styled():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        legend(axes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _losses(run: Run) -> Picture | None:
    moved = {task: start_and_end(run.series(f"loss/{task}")[1]) for task in run.tasks}
    said = [f"{task} {words.number(start)} → {words.number(end)}" for task, (start, end) in moved.items() if not math.isnan(start)]
    if not said:
        return None
    alt = f"Loss of each task over {_steps(run)}, from its start to its end: {'; '.join(said)}."
    caption = "Each task on its own scale: faint the recorded values, bold their running mean."
    return Picture("losses", "Losses", caption, alt, _png(losses_figure(run, {})))


def _of_pairs(run: Run, pairs: list[Conflict]) -> list[Picture]:
    here = sorted((pair for pair in pairs if pair.steps), key=lambda pair: pair.mean.value)
    if not here:
        return []
    said = []
    for pair in here[: panels.DRAWN]:
        when = "".join(f", in conflict in {words.span(one.first, one.last)}" for one in pair.stretches[:3])
        said.append(f"{pair.name}: mean {words.signed(pair.mean.value)}, lowest {words.signed(pair.lowest)}{when}")
    cosines = f"Cosine of the gradients of each pair of tasks over {_steps(run)}. {'; '.join(said)}."
    negative = [f"{pair.name} {words.percent(pair.rate)}" for pair in here[: panels.DRAWN]]
    rates = f"Share of steps with a negative cosine over {_steps(run)}, a running mean. Over the whole run: {', '.join(negative)}."
    return [
        Picture("cosines", "Do gradients agree?", "Below zero two tasks pull apart; bars mark lasting conflict.", cosines,
                _panel(lambda axes: panels.cosines(axes, run, pairs))),
        Picture("conflict-rate", "How often they conflict", "Around 50 % is what chance makes of cosines near zero.", rates,
                _panel(lambda axes: panels.rates(axes, run, pairs))),
    ]  # fmt: skip


def _lengths(run: Run) -> Picture | None:
    moved = {task: start_and_end(run.series(f"norm/{task}")[1]) for task in run.tasks}
    said = [f"{task} {words.number(start)} → {words.number(end)}" for task, (start, end) in moved.items() if not math.isnan(start)]
    if not said:
        return None
    alt = (
        f"Length of each task's gradient over {_steps(run)}, on a logarithmic scale, from its start to its end: {'; '.join(said)}."
    )
    caption = "The longer a task's gradient, the more it decides; on a logarithmic scale."
    return Picture("lengths", "Who pulls hardest", caption, alt, _panel(lambda axes: panels.lengths(axes, run)))


def _by_task(run: Run, kind: str, title: str, ylabel: str, caption: str) -> Picture | None:
    series = {task: run.series(f"{kind}/{task}")[1] for task in run.tasks}
    moved = {task: start_and_end(values) for task, values in series.items()}
    said = [f"{task} {words.number(start)} → {words.number(end)}" for task, (start, end) in moved.items() if not math.isnan(start)]
    if not said or all((values == 1).all() for values in series.values()):  # all one: the finding says so
        return None
    alt = f"{title} over {_steps(run)}, from start to end: {'; '.join(said)}."
    return Picture(kind, title, caption, alt, _panel(lambda axes: panels.by_task(axes, run, kind, ylabel)))


def _of_layers(run: Run) -> list[Picture]:
    layers = run.layers
    if layers is None:
        return []
    conflicting = {pair: layer_conflicts(run, *pair) for pair in run.pairs}
    worst = sorted(run.pairs, key=lambda pair: min((one.cosine * one.share for one in conflicting[pair]), default=0.0))[:MAPS]
    shown = [pair for pair in run.pairs if pair in worst]
    grids = [layer_panels.grid(layers, *pair) for pair in shown]
    if not grids:
        return []
    reach, rows = layer_panels.reach(grids), len(grids[0].names)
    found = []
    for number, (pair, grid) in enumerate(zip(shown, grids, strict=True), start=1):
        with _styled():
            figure = Figure(figsize=(WIDTH, 1.3 + 0.17 * min(max(rows, 5), 40)), layout="constrained")
            axes = figure.subplots()
            image = layer_panels.heat_map(axes, grid, reach)
            bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=30, pad=0.03, ticks=MaxNLocator(5))
            bar.set_label("mean cosine (red: conflict)")
            bar.outline.set_visible(False)
        where = [
            f"{words.layer(one.layer)} in {words.span(one.first, one.last)} (cosine {words.signed(one.cosine)})"
            for one in conflicting[pair]
        ]
        alt = f"Mean cosine of {pair[0]} and {pair[1]} at {rows} layers over {_steps(run)}. "
        alt += f"In conflict: {words.listed(where, 8)}." if where else "No layer is in conflict for long."
        caption = "Layers from first to last, steps from left to right. One colour scale for all pairs."
        found.append(Picture(f"layers-{number}", f"Where: {short(pair[0])} – {short(pair[1])}", caption, alt, _png(figure)))
    few = [place for place, pair in enumerate(shown) if pair in worst[:DOTS]]
    names = [f"{one} – {other}" for one, other in (shown[place] for place in few)]

    def draw(axes: Axes) -> None:
        layer_panels.bars(axes, [grids[place] for place in few], names)

    alt = f"Mean cosine over the run at each of {rows} layers, of {words.listed(names)}."
    height = 0.9 + 0.2 * min(max(rows, 4), 40)
    found.append(Picture("layers", "Layer by layer, over the run", "Dots left of zero: conflict.", alt, _panel(draw, height)))
    return found


def _steps(run: Run) -> str:
    return words.span(int(run.steps[0]), int(run.steps[-1]))
