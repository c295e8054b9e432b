"""Whether a task has stopped learning: its gradient, its weight or its loss says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.facts import LASTING, start_and_end
from gradsurgery.report.finding import Finding
from gradsurgery.report.run import Run
from gradsurgery.report.series import SHORTEST, edges, mean

VANISHED = 0.01  # of a task's first lengths, or of the others': the trunk no longer hears it
FADED = 0.1  # of its first lengths: without that, a task that is short beside the others has not collapsed, but always was short
LEARNED = 0.9  # share of its first loss that a task has shed: then a short gradient is what success looks like
HALF_LEARNED = 0.5
RISEN = 0.1  # of its first size, by which a loss has to stand above it
SMOOTH = 9  # bins of a running median: single steps do not count


def collapse(run: Run) -> list[Finding]:
    """Tasks whose gradient or weight has gone to nothing by the end, and those whose loss is NaN or stands above its start."""
    if len(run.tasks) < 2:
        return [finding for task in run.tasks for finding in _loss(run, task)]
    lengths, balances, weights = (
        {task: np.abs(_medians(run.column(f"{kind}/{task}"))) for task in run.tasks} for kind in ("norm", "balance", "weight")
    )
    found = []
    for task in run.tasks:
        found += _vanished(run, task, lengths)
        found += _weightless(run, task, "balance", "loss weight", balances)
        found += _weightless(run, task, "weight", "weight", weights)
        found += _loss(run, task)
    return found


Smooth = Mapping[str, NDArray[np.float64]]  # by task, over the bins of the run


def _beside(task: str, values: Smooth) -> NDArray[np.float64]:
    """The median of the other tasks, 0 where there are none. [bins]"""
    return np.nan_to_num(_nanmedian(np.array([one for other, one in values.items() if other != task])))


def _vanished(run: Run, task: str, every: Smooth) -> list[Finding]:
    lengths = every[task]
    known = np.isfinite(lengths)
    if known.sum() < SHORTEST:
        return []
    start, end = start_and_end(lengths[known])
    others = _beside(task, every)
    short = (lengths < VANISHED * start) | ((lengths < VANISHED * others) & (lengths < FADED * start))
    place = _since(short, known)
    if place is None or start == 0:
        return []
    step = int(run.steps[edges(len(run.steps))[place]])
    loss_start, loss_end = start_and_end(run.series(f"loss/{task}")[1])
    shed = (loss_start - loss_end) / abs(loss_start) if loss_start else float("nan")
    beside = float(others[np.flatnonzero(known)[-1]])
    evidence: dict[str, float | int | str] = {
        "since step": step, "median length at the start": start, "median length at the end": end, "the others' at the end": beside,
        "loss at the start": loss_start, "loss at the end": loss_end, "columns": f"norm/{task}, loss/{task}",
    }  # fmt: skip
    size = (
        "to zero"
        if end == 0
        else f"below {words.percent(VANISHED)} of its first length"
        if end < VANISHED * start
        else "to nothing beside the others'"
    )
    gone = f"gradient has gone {size} by step {words.whole(step)} and stays there"
    moved = f"({words.number(loss_start)} → {words.number(loss_end)})"
    if shed >= LEARNED:
        sentence = f"{task}'s {gone}, and so has its loss {moved}: it is learned, or its loss is weighed down."
        return [Finding("collapse", "note", sentence, evidence, "If the loss is logged after its weight, look at the weight.")]
    if shed >= HALF_LEARNED:
        sentence = f"{task}'s {gone}; its loss has fallen {moved}: it is finished, or stuck."
        return [Finding("collapse", "note", sentence, evidence, f"Compare {task} with a run of it alone.")]
    learned = f"its loss has not halved {moved}" if np.isfinite(shed) else "the log has no loss of it that would show progress"
    return [Finding("collapse", "warning", f"{task} collapses: its {gone}, and {learned}.", evidence, _cure(task))]


def _cure(task: str) -> str:
    return (
        f"No surgery brings a gradient back that does not arrive. Look at {task}'s head (dead units, saturation, a "
        "detach), its loss and weight, and the learning rate; train it alone to see whether it learns there."
    )


def _weightless(run: Run, task: str, kind: str, called: str, every: Smooth) -> list[Finding]:
    weights = every[task]
    known = np.isfinite(weights)
    if known.sum() < SHORTEST:
        return []
    place = _since(weights < VANISHED * _beside(task, every), known)
    if place is None:
        return []
    step, end = int(run.steps[edges(len(run.steps))[place]]), start_and_end(weights[known])[1]
    whose = run.balancer if kind == "balance" else run.method
    by = f" by {whose}" if whose and whose != "none" else ""
    sentence = f"{task}'s {called}{by} has gone to {words.number(end)} by step {words.whole(step)} and stays there."
    evidence: dict[str, float | int | str] = {"since step": step, "median weight at the end": end, "column": f"{kind}/{task}"}
    return [Finding("collapse", "warning", sentence, evidence, "Bound the weight from below, or weigh the losses by hand.")]


def _loss(run: Run, task: str) -> list[Finding]:
    name = f"loss/{task}"
    broken = np.isinf(run.columns.get(name, np.empty(0)))
    if broken.any():
        step, count = int(run.steps[broken.argmax()]), int(broken.sum())
        sentence = (
            f"{task}'s loss is NaN or infinite in {words.whole(count)} recorded step{'s' if count > 1 else ''}, "
            f"first in step {words.whole(step)}."
        )
        advice = "Look at that step's batch and at the loss's domain (log, division, overflow), then at the learning rate."
        return [Finding("loss", "warning", sentence, {"first step": step, "steps": count, "column": name}, advice)]
    steps, values = run.series(name)
    if len(values) < 2 * SHORTEST:
        return []
    start, end = start_and_end(values)
    error = mean(values[-max(5, len(values) // 10) :]).error
    if end <= start + max(RISEN * abs(start), 3 * error):
        return []
    cuts = edges(len(values))
    smooth = _medians(values)
    place = _since(smooth > start, np.ones(len(smooth), bool))
    since = "" if place is None else f" since step {words.whole(int(steps[cuts[place]]))}"
    sentence = f"{task}'s loss stands above its start{since}: {words.number(start)} → {words.number(end)}."
    evidence: dict[str, float | int | str] = {
        "rises": task,
        "loss at the start": start,
        "loss at the end": end,
        "standard error at the end": error,
        "column": name,
    }
    return [Finding("loss", "warning", sentence, evidence, f"Try a lower learning rate, and {task} alone, before any method.")]


def _since(low: NDArray[np.bool_], known: NDArray[np.bool_]) -> int | None:
    """The bin from which on all that are known are low, for LASTING of the run at least; None where the end is not, or all are."""
    places = np.flatnonzero(known)
    high = np.flatnonzero(~low[places])
    if len(high) == 0 or high[-1] == len(places) - 1 or len(places) - 1 - high[-1] < LASTING * len(places):
        return None
    return int(places[high[-1] + 1])


def _medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each bin, and then over SMOOTH bins around each; NaN where a bin holds nothing. [bins]"""
    cuts = edges(len(values))
    places = cuts[:-1, None] + np.arange(np.diff(cuts).max())
    binned = _nanmedian(np.where(places < cuts[1:, None], values[places.clip(max=len(values) - 1)], np.nan).T)
    known = np.flatnonzero(np.isfinite(binned))
    if len(known) >= SMOOTH:
        padded = np.pad(binned[known], SMOOTH // 2, mode="edge")
        binned[known] = np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)
    return binned


def _nanmedian(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the rows, without NumPy's warning where there is nothing. [R, C] -> [C]"""
    result = np.full(table.shape[1], np.nan)
    here = np.isfinite(table).any(0)
    if here.any():
        result[here] = np.nanmedian(table[:, here], axis=0)
    return result
