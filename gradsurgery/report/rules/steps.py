"""What went wrong in single steps: gradients that are not finite, solvers without an answer, tasks that were not there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.facts import LASTING
from gradsurgery.report.finding import Finding
from gradsurgery.report.run import Run

SEARCH = 16  # steps in which a scaler that begins at 2¹⁶ has halved its scale to 1
RARE = 0.01  # share of the steps, beyond which no scaler's search explains them


def steps(run: Run) -> list[Finding]:
    """One finding for each kind of trouble, none where there was none, and one that says so."""
    found = [*_nonfinite(run), *_solver(run), *_absent(run)]
    if "nonfinite" in run.columns and not run.column("nonfinite")[np.isfinite(run.column("nonfinite"))].any():
        sentence = f"Every gradient of the {words.whole(len(run.series('nonfinite')[0]))} recorded steps was finite."
        found.insert(0, Finding("steps", "ok", sentence, {"columns": "nonfinite"}))
    return found


def _nonfinite(run: Run) -> list[Finding]:
    recorded, flags = run.series("nonfinite")
    if not flags.any():
        return []
    bad = recorded[flags > 0]
    tasks = [task for task in run.tasks if np.isinf(run.columns.get(f"norm/{task}", np.empty(0))).any()]
    whose = f" of {words.listed(tasks)}" if tasks else ""
    sentence = (
        f"In {words.whole(len(bad))} of {words.whole(len(recorded))} recorded steps a gradient{whose} was infinite or NaN, "
        f"first in step {words.whole(int(bad[0]))}, last in step {words.whole(int(bad[-1]))}."
    )
    advice = "A few under float16 are the loss scale's search. More, or any without a scaler: look at that step's batch and loss."
    evidence: dict[str, float | int | str] = {
        "first step": int(bad[0]),
        "last step": int(bad[-1]),
        "steps": len(bad),
        "column": "nonfinite",
    }
    few = len(bad) <= max(SEARCH, RARE * len(recorded)) and bad[-1] < recorded[-1]
    return [Finding("steps", "note" if few else "warning", sentence, evidence, advice)]


def _solver(run: Run) -> list[Finding]:
    found = []
    recorded, converged = run.series("converged")
    missed = recorded[converged == 0]
    if len(missed):
        sentence = (
            f"The method's solver did not converge in {words.whole(len(missed))} of {words.whole(len(recorded))} recorded steps, "
            f"first in step {words.whole(int(missed[0]))}; its weights are then the best that it found."
        )
        evidence: dict[str, float | int | str] = {"first step": int(missed[0]), "steps": len(missed), "column": "converged"}
        severity = "warning" if len(missed) >= LASTING * len(recorded) else "note"
        found.append(Finding("steps", "warning" if severity == "warning" else "note", sentence, evidence))
    recorded, stationary = run.series("stationary")
    count = int((stationary > 0).sum())
    if count:
        share = words.percent(count / len(recorded))
        where = " at some layer" if run.layers is not None else ""
        sentence = f"In {share} of the recorded steps the gradients left no direction{where} that serves all tasks."
        found.append(Finding("steps", "note", sentence, {"steps": count, "column": "stationary"}))
    return found


def _absent(run: Run) -> list[Finding]:
    """Tasks without a gradient in steps in which another has one. A loss without a gradient reaches nothing that is shared."""
    here = present(run)
    any_here = np.any(list(here.values()), axis=0) if here else np.zeros(0, bool)
    total = int(any_here.sum())
    found = [*_never(run, here, total)]
    for task, there in here.items():
        missing = any_here & ~there
        count = int(missing.sum())
        if not count:
            continue
        lossy = missing & np.isfinite(run.column(f"loss/{task}"))
        evidence: dict[str, float | int | str] = {"steps without": count, "of": total, "column": f"norm/{task}"}
        if count == total:
            sentence = f"{task} never had a gradient in the {words.whole(total)} recorded steps."
            found.append(Finding("absence", "warning", sentence, evidence, f"See that {task}'s loss reaches what is shared."))
        elif lossy.sum() >= LASTING * total and not there[np.flatnonzero(lossy)[0] :].any():
            first = int(run.steps[np.flatnonzero(lossy)[0]])
            sentence = f"{task} has a loss but no gradient from step {words.whole(first)} on: it no longer reaches what is shared."
            found.append(
                Finding("collapse", "warning", sentence, {"since step": first, **evidence}, f"Look for a detach in {task}'s head.")
            )
        else:
            sentence = f"{task} had no gradient in {words.percent(count / total)} of the recorded steps."
            found.append(Finding("absence", "note", sentence, evidence))
    return found


def present(run: Run) -> dict[str, NDArray[np.bool_]]:
    """In which steps each task had a gradient: by its length, or where none was measured in a step, by its weight. [S] each"""
    nothing = np.full(len(run.steps), np.nan)
    lengths, weights = (
        {task: ~np.isnan(run.columns.get(f"{kind}/{task}", nothing)) for task in run.tasks} for kind in ("norm", "weight")
    )
    measured = np.any(list(lengths.values()), axis=0) if lengths else np.zeros(0, bool)
    return {task: np.where(measured, lengths[task], weights[task]) for task in run.tasks}


def _never(run: Run, here: dict[str, NDArray[np.bool_]], total: int) -> list[Finding]:
    """Tasks that surgery counts as absent in every step, so that the log has nothing of them but perhaps a loss."""
    steps, absent = run.series("absent")
    if not len(steps) or not here:
        return []
    counted = np.sum(list(here.values()), axis=0)[np.searchsorted(run.steps, steps)]
    missing = int((counted + absent)[counted > 0].max(initial=0)) - len(run.tasks)
    if missing <= 0:
        return []
    losses = [name.partition("/")[2] for name in run.columns if name.startswith("loss/") and len(run.series(name)[0])]
    told = [task for task in losses if task not in run.tasks]
    over = f"in the {words.whole(total)} recorded steps"
    sentence = f"{missing} more task{'s' if missing > 1 else ''} never had a gradient {over}."
    whose = "its loss reaches" if missing == 1 else "their losses reach"
    if len(told) == missing:
        has = "has a loss" if missing == 1 else "have losses"
        sentence = f"{words.listed(told)} {has}, but never had a gradient {over}."
        whose = f"{told[0]}'s loss reaches" if missing == 1 else whose
    evidence: dict[str, float | int | str] = {"tasks without": missing, "of": len(run.tasks) + missing, "column": "absent"}
    return [Finding("absence", "warning", sentence, evidence, f"See that {whose} what is shared: a detach, or another trunk.")]
