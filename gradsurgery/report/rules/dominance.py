"""Which task holds the gradient, and which the loss."""

from __future__ import annotations

import math

import numpy as np

from gradsurgery.report import words
from gradsurgery.report.facts import balanced, shares
from gradsurgery.report.finding import Finding, Severity
from gradsurgery.report.run import Run

EVEN = 1.25  # gradients whose lengths differ by less than this factor count as even
EVENING = (("uw", "gradnorm"), ("imtlg", "nashmtl"))  # balancers and methods that even lengths out
LOPSIDED = 4.0  # of two orthogonal gradients the sum then points 14° from the longer one: the shorter is hardly heard


def dominance(run: Run) -> list[Finding]:
    """Of the lengths as they arrive at the place of surgery: medians over the steps, so that single spikes do not decide."""
    lengths = {task: float(np.median(values)) for task in run.tasks if len(values := run.series(f"norm/{task}")[1])}
    if len(lengths) < 2:
        return []
    part = shares(run, list(lengths))
    strongest, weakest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    ratio = lengths[strongest] / lengths[weakest] if lengths[weakest] > 0 else math.inf
    severity: Severity = "ok" if ratio < EVEN else "note" if ratio < LOPSIDED else "warning"
    if ratio < EVEN:
        sentence = f"No task dominates{run.at}: the gradients' lengths differ by a factor of only {ratio:.2f}"
    elif math.isinf(ratio):
        sentence = f"{weakest} is drowned{run.at}: its gradient is zero in most steps"
    elif _drowned(list(lengths.values())):
        least = float(np.median([value for task, value in lengths.items() if task != weakest])) / lengths[weakest]
        drowned = "is drowned" if least >= LOPSIDED else "pulls least"
        sentence = f"{weakest} {drowned}{run.at}: the median of the other tasks' gradients is {words.number(least)} times as long"
    else:
        sentence = f"{strongest} dominates{run.at}: its gradient is {words.number(ratio)} times as long as {weakest}'s"
    if all(math.isfinite(value) for value in part.gradient.values()):
        sentence += f". Of the gradients' lengths each task holds: {words.shares(part.gradient)}"
    evidence: dict[str, float | int | str] = {f"median length, {task}": value for task, value in lengths.items()}
    evidence["longest / shortest"] = ratio
    found = [Finding("dominance", severity, f"{sentence}.", {**evidence, "columns": "norm/…"}, _advice(run, severity, weakest))]
    if all(math.isfinite(value) for value in part.loss.values()):
        found.append(_losses(run, part.loss, strongest, ratio))
    return found


def _drowned(lengths: list[float]) -> bool:
    """Whether the shortest is further from the median of the others than the longest; of two the longest dominates."""
    ordered = sorted(lengths)
    return len(ordered) > 2 and float(np.median(ordered[1:])) / ordered[0] > ordered[-1] / float(np.median(ordered[:-1]))


def _losses(run: Run, part: dict[str, float], strongest: str, ratio: float) -> Finding:
    heaviest = max(part, key=part.__getitem__)
    weighed = balanced(run) and any(len(run.series(f"balance/{task}")[1]) for task in part)
    negative = any((run.series(f"loss/{task}")[1] < 0).any() for task in part)
    what = f"summed {'sizes of the ' if negative else ''}{'balanced ' if weighed else ''}loss{'es' if negative else ''}"
    sentence = f"Of the {what} {heaviest} holds the most: {words.shares(part)}."
    disagree = heaviest != strongest and ratio >= EVEN
    if disagree:
        sentence += f" Loss and gradient disagree: {heaviest} has the larger loss, {strongest} the stronger pull."
    evidence = {f"share of the loss, {task}": value for task, value in part.items()}
    columns = "loss/…, balance/…" if weighed else "loss/…"
    return Finding("dominance", "note" if disagree else "ok", sentence, {**evidence, "columns": columns})


def _advice(run: Run, severity: Severity, weakest: str) -> str:
    """Not what runs already."""
    if severity != "warning":
        return ""
    balancers, methods = (", ".join(one for one in names if one not in (run.balancer, run.method)) for names in EVENING)
    return (
        f"If {weakest} matters and learns too slowly, weigh its loss up by hand first; then try a balancer ({balancers}) or a "
        f"method that evens lengths out ({methods}). That lengths differ is no fault by itself."
    )
