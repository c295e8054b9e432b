"""Whether a method was at work that is more than a weighted sum, and whether it acted where tasks conflict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report.facts import Conflict
from gradsurgery.report.run import Run

PLAIN = ("sum", "mean", "constant", "random", "none")  # methods that do not look at the gradients
UNCHANGED = 0.01  # weights that differ among the tasks by less, on average, leave the sum as it is
UNNAMED = "the method of this run"


def at_work(run: Run) -> str | None:
    """The name of the method, by config.json; without one UNNAMED, where its weights differ among the tasks."""
    if run.method is not None:
        return None if run.method in PLAIN else run.method
    spread = spreads(run)
    known = spread[np.isfinite(spread)]
    return UNNAMED if len(known) and known.mean() > UNCHANGED else None


def acted(run: Run, pairs: Sequence[Conflict]) -> float | None:
    """Of the steps in which these pairs conflict for long, in which share the weights differ; None where there are no weights."""
    spread = spreads(run)
    inside = np.zeros(len(run.steps), dtype=bool)
    for stretch in (stretch for pair in pairs for stretch in pair.stretches):
        inside |= (run.steps >= stretch.first) & (run.steps <= stretch.last)
    known = spread[inside & np.isfinite(spread)]
    return float((known > UNCHANGED).mean()) if len(known) else None


def spreads(run: Run) -> NDArray[np.float64]:
    """(largest − smallest) / mean weight of the tasks that have one; NaN with fewer than two, or where all are zero. [S]"""
    table = np.array([run.column(f"weight/{task}") for task in run.tasks]).reshape(len(run.tasks), len(run.steps))
    known = np.isfinite(table)
    count = known.sum(0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sizes = np.where(known, np.abs(table), 0.0).sum(0) / count
        largest = np.where(known, table, -np.inf).max(0, initial=-np.inf)
        smallest = np.where(known, table, np.inf).min(0, initial=np.inf)
        spread: NDArray[np.float64] = np.where((count >= 2) & (sizes > 0), (largest - smallest) / sizes, np.nan)
    return spread
