"""Whether a task has stopped learning: its gradient, its weight or its loss says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.facts import LASTING, start_and_end
from gradsurgery.report.finding import Finding
from gradsurgery.report.run import Run
from gradsurgery.report.series import SHORTEST, edges, inflation

VANISHED = 0.01  # of a task's first lengths, or of the others': the trunk no longer hears it
FADED = 0.1  # of both: a task short beside the others may always have been; one short beside its start may stand as they do
LEARNED = 0.9  # share of its first loss that a task has shed: then a short gradient is what success looks like
HALF_LEARNED = 0.5
RISEN = 0.1  # of its first size, by which a loss has to stand above it
ERRORS = 3.0  # standard errors of the difference, by which it has to, too
MEDIAN = 1.3  # median differences of neighbours, by which a median errs, times √n
SMOOTH = 9  # bins of a running median: single steps do not count


def collapse(run: Run) -> list[Finding]:
    """Tasks whose gradient or weight has gone to nothing by the end, and those whose loss is NaN or stands above its start."""
    if len(run.tasks) < 2:
        return [finding for task in run.tasks for finding in _loss(run, task)]
    lengths, balances, weights = (
        {task: np.abs(_medians(run.column(f"{kind}/{task}"))) for task in run.tasks} for kind in ("norm", "balance", "weight")
    )
    heard = {task: lengths[task] * weights[task] for task in run.tasks}  # the balancer's weights are in the lengths
    found = []
    for task in run.tasks:
        found += _vanished(run, task, lengths)
        found += _weightless(run, task, "balance", "loss weight", balances, lengths)
        found += _weightless(run, task, "weight", "weight", weights, heard)
        found += _loss(run, task)
    return found if any(one.kind == "collapse" for one in found) else [*_together(run, lengths), *found]


Smooth = Mapping[str, NDArray[np.float64]]  # by task, over the bins of the run


def _beside(task: str, values: Smooth) -> NDArray[np.float64]:
    """The median of the other tasks, NaN where there are none. [bins]"""
    return _nanmedian(np.array([one for other, one in values.items() if other != task]))


def _fallen(values: NDArray[np.float64], start: float, others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Gone, beside the start as well as beside the others; beside the start alone where there are no others. [bins]"""
    there = np.isfinite(others)
    below_start = (values < VANISHED * start) & (~there | (values < FADED * others))
    below_others = there & (values < VANISHED * others) & (values < FADED * start)
    gone: NDArray[np.bool_] = (values == 0) | below_start | below_others
    return gone


def _together(run: Run, every: Smooth) -> list[Finding]:
    """All lengths gone at once, which a scale on all of them makes, too."""
    since = []
    for lengths in every.values():
        known = np.isfinite(lengths)
        if known.sum() >= SHORTEST:
            since.append(_since(lengths < VANISHED * start_and_end(lengths[known])[0], known))
    places = [place for place in since if place is not None]
    losses = [start_and_end(run.series(f"loss/{task}")[1]) for task in run.tasks]
    if len(places) < 2 or len(places) < len(since) or all(_shed(*moved) >= HALF_LEARNED for moved in losses):
        return []
    step = int(run.steps[edges(len(run.steps))[max(places)]])
    sentence = (
        f"The gradients of all tasks have gone below {words.percent(VANISHED)} of their first lengths by step {words.whole(step)} "
        "and stay there."
    )
    advice = (
        "At a representation lengths contain a float16 scaler's scale: look at that first. Otherwise look at the shared part: dead "
        "units, saturation, the learning rate."
    )
    return [Finding("collapse", "note", sentence, {"since step": step, "columns": "norm/…"}, advice)]


def _shed(start: float, end: float) -> float:
    """The share of a loss that is gone; NaN where none was there, or where it is negative, and so has no size to lose."""
    return (start - end) / start if start > 0 and end >= 0 else float("nan")


def _vanished(run: Run, task: str, every: Smooth) -> list[Finding]:
    lengths = every[task]
    known = np.isfinite(lengths)
    if known.sum() < SHORTEST:
        return []
    start, end = start_and_end(lengths[known])
    others = _beside(task, every)
    place = _since(_fallen(lengths, start, others), known)
    if place is None or start == 0:
        return []
    step = int(run.steps[edges(len(run.steps))[place]])
    loss_start, loss_end = start_and_end(run.series(f"loss/{task}")[1])
    shed = _shed(loss_start, loss_end)
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
        sentence = f"{task}'s {gone}, and its loss has fallen, too {moved}: it is learned, or its loss is weighed down."
        return [Finding("collapse", "note", sentence, evidence, "If the loss is logged after its weight, look at the weight.")]
    if shed >= HALF_LEARNED or (np.isnan(shed) and loss_end < loss_start):
        sentence = f"{task}'s {gone}; its loss has fallen {moved}: it is finished, or stuck."
        return [Finding("collapse", "note", sentence, evidence, f"Compare {task} with a run of it alone.")]
    learned = (
        f"its loss has not halved {moved}"
        if np.isfinite(shed)
        else "the log has no loss of it that would show progress"
        if np.isnan(loss_start)
        else f"its loss shows no progress {moved}"
    )
    return [Finding("collapse", "warning", f"{task} collapses: its {gone}, and {learned}.", evidence, _cure(task))]


def _cure(task: str) -> str:
    return (
        f"No surgery brings a gradient back that does not arrive. Look at {task}'s head (dead units, saturation, a "
        "detach), its loss and weight, and the learning rate; train it alone to see whether it learns there."
    )


def _weightless(run: Run, task: str, kind: str, called: str, every: Smooth, heard: Smooth) -> list[Finding]:
    """A weight that has fallen, and not because it evens out lengths: what it leaves of a gradient is short beside the others'."""
    weights = every[task]
    known = np.isfinite(weights)
    if known.sum() < SHORTEST:
        return []
    quiet = ~(heard[task] >= FADED * _beside(task, heard))
    place = _since(_fallen(weights, start_and_end(weights[known])[0], _beside(task, every)) & quiet, known)
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
    error = MEDIAN * float(np.median(np.abs(np.diff(values)))) * inflation(values) * (2 / max(5, len(values) // 10)) ** 0.5
    if end <= start + max(RISEN * abs(start), ERRORS * error):
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
        "standard error of the difference": error,
        "column": name,
    }
    advice = (
        "Some losses are meant to rise: a divergence, an adversary's, one whose weight grows. Otherwise try a lower learning rate, "
        f"and {task} alone, before any method."
    )
    return [Finding("loss", "warning", sentence, evidence, advice)]


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
