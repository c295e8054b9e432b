"""What went wrong in single steps: gradients that are not finite, solvers without an answer, tasks that were not there."""

from __future__ import annotations

import numpy as np

from gradsurgery.report import words
from gradsurgery.report.facts import LASTING
from gradsurgery.report.finding import Finding
from gradsurgery.report.run import Run


def steps(run: Run) -> list[Finding]:
    """One finding for each kind of trouble, none where there was none, and one that says so."""
    found = [*_nonfinite(run), *_solver(run), *_absent(run)]
    if "nonfinite" in run.columns and not any(finding.severity == "warning" for finding in found):
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
    return [Finding("steps", "warning", sentence, evidence, advice)]


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
        sentence = f"In {share} of the recorded steps the gradients left no direction that serves all tasks."
        found.append(Finding("steps", "note", sentence, {"steps": count, "column": "stationary"}))
    return found


def _absent(run: Run) -> list[Finding]:
    """Tasks without a gradient in steps in which another has one. A loss without a gradient reaches nothing that is shared."""
    here = {task: np.isfinite(run.columns.get(f"norm/{task}", np.full(len(run.steps), np.nan))) for task in run.tasks}
    here |= {task: here[task] | np.isinf(run.columns.get(f"norm/{task}", np.zeros(len(run.steps)))) for task in run.tasks}
    any_here = np.any(list(here.values()), axis=0) if here else np.zeros(0, bool)
    total = int(any_here.sum())
    found = []
    for task, present in here.items():
        missing = any_here & ~present
        count = int(missing.sum())
        if not count:
            continue
        lossy = missing & np.isfinite(run.column(f"loss/{task}"))
        evidence: dict[str, float | int | str] = {"steps without": count, "of": total, "column": f"norm/{task}"}
        if count == total:
            sentence = f"{task} never had a gradient in the {words.whole(total)} recorded steps."
            found.append(Finding("absence", "warning", sentence, evidence, f"See that {task}'s loss reaches what is shared."))
        elif lossy.sum() >= LASTING * total and not present[np.flatnonzero(lossy)[0] :].any():
            first = int(run.steps[np.flatnonzero(lossy)[0]])
            sentence = f"{task} has a loss but no gradient from step {words.whole(first)} on: it no longer reaches what is shared."
            found.append(
                Finding("collapse", "warning", sentence, {"since step": first, **evidence}, f"Look for a detach in {task}'s head.")
            )
        else:
            sentence = f"{task} had no gradient in {words.percent(count / total)} of the recorded steps."
            found.append(Finding("absence", "note", sentence, evidence))
    return found
