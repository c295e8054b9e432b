"""The page's tables of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.facts import conflicts, drift, shares, start_and_end
from gradsurgery.report.rules.by_layer import layer_conflicts
from gradsurgery.report.run import Run

PAIRS = 4  # columns of the layers' table; of more pairs each layer shows the one that conflicts most
KNOWN = ("loss", "balance", "variance", "weight", "norm", "cosine")  # kinds of columns that other tables and findings show
OWN = ("norm_mean", "norm_deviation", "epoch", "conflicts", "conflict_rate", "nonfinite", "absent", "converged", "stationary")


def tables(run: Run) -> str:
    """Tasks, pairs, layers, and what else was logged; those for which there are numbers."""
    return "".join((_tasks(run), _pairs(run), _layers(run), _others(run)))


def _tasks(run: Run) -> str:
    if not run.tasks:
        return ""
    part = shares(run, run.tasks)
    rows = []
    for task in run.tasks:
        steps, lengths = run.series(f"norm/{task}")
        rows.append([
            _name(task), words.whole(len(steps)), _moved(lengths), words.percent(part.gradient[task]),
            _moved(run.series(f"loss/{task}")[1]), words.percent(part.loss[task]),
            *(words.number(drift(run, f"{kind}/{task}").last) for kind in ("balance", "variance", "weight")),
        ])  # fmt: skip
    head = [
        "Task",
        "steps",
        "length, start → end",
        "share of lengths",
        "loss, start → end",
        "share of loss",
        "loss weight",
        "σ²",
        "weight",
    ]
    return _table("Tasks", *_filled(head, rows))


def _moved(values: NDArray[np.float64]) -> str:
    start, end = start_and_end(values)
    return f"{words.number(start)} → {words.number(end)}" if len(values) else "–"


def _pairs(run: Run) -> str:
    rows = []
    for pair in conflicts(run):
        when = words.listed((words.span(one.first, one.last) for one in pair.stretches), 4) or "none"
        rows.append([
            _name(pair.name), words.whole(pair.steps), _cosine(pair.mean.value), _error(pair.mean.error),
            _cosine(pair.last_quarter), _cosine(pair.mean_in_conflict), _cosine(pair.lowest), words.percent(pair.rate), when,
        ])  # fmt: skip
    head = ["Pair", "steps", "mean cosine", "± s.e.", "last quarter", "when negative", "lowest", "negative", "lasting conflict"]
    return _table("Pairs of tasks", head, rows)


def _layers(run: Run) -> str:
    layers = run.layers
    if layers is None or not run.pairs:
        return ""
    means = {}
    for one, other in run.pairs:
        grid = layers.column(f"cosine/{layers.pair(one, other)}")
        known = np.where(np.isfinite(grid), layers.counts, 0.0)
        total = known.sum(1)
        means[one, other] = np.where(total > 0, (np.nan_to_num(grid) * known).sum(1) / np.where(total > 0, total, 1), np.nan)
    spans: dict[str, list[str]] = {}
    for pair in run.pairs:
        for found in layer_conflicts(run, *pair):
            spans.setdefault(found.layer, []).append(f"{pair[0]} – {pair[1]}: {words.span(found.first, found.last)}")
    rows = []
    few = len(means) <= PAIRS
    for place, name in enumerate(layers.names):
        if few:
            middle = [_cosine(values[place]) for values in means.values()]
        else:
            worst = min(means, key=lambda pair: np.nan_to_num(means[pair][place], nan=2.0))
            middle = [escape(f"{worst[0]} – {worst[1]}"), _cosine(means[worst][place])]
        rows.append([_name(words.layer(name)), *middle, escape(words.listed(spans.get(name, []), 4)) or "none"])
    named = [escape(f"{one} – {other}") for one, other in means] if few else ["lowest pair", "its mean cosine"]
    table = _table("", ["Layer", *named, "lasting conflict"], rows)
    title = "Layers: mean cosine over the run" if few else "Layers"
    if len(rows) > 30:
        return f"<h3>{title}</h3><details><summary>{len(rows)} layers</summary>{table}</details>"
    return f"<h3>{title}</h3>{table}"


def _others(run: Run) -> str:
    rows = []
    for name in run.columns:
        if (name.partition("/")[0] in KNOWN and "/" in name) or name in OWN:
            continue
        _, values = run.series(name)
        if len(values):
            rows.append(
                [
                    _name(name),
                    words.whole(len(values)),
                    *(words.number(float(one)) for one in (values[0], values[-1], values.min(), values.max())),
                ]
            )
    return _table("What else was logged", ["Column", "steps", "first", "last", "lowest", "highest"], rows)


def _name(name: str) -> str:
    """Escaped, and where it has to be broken, broken at its own joints."""
    return re.sub(r"([/_.])(?=.)", r"\1<wbr>", escape(name))


def _error(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _cosine(value: float) -> str:
    if np.isnan(value):
        return "–"
    text = words.signed(float(value), 3)
    return f'<span class="negative">{text}</span>' if text.startswith("−") else text


def _filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Without columns that hold nothing."""
    kept = [place for place in range(len(head)) if place == 0 or any(row[place] != "–" for row in rows)]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td{_wide(cell)}>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    label = escape(title or "Layers", quote=True)
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    heading = f"<h3>{title}</h3>" if title else ""
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f'{heading}<div class="scroll" role="region" tabindex="0" aria-label="{label}">{table}</div>'


def _wide(cell: str) -> str:
    return ' class="wide"' if len(cell) > 60 and "<" not in cell else ""
