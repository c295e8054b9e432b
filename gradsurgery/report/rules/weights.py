"""Where the balancer's and the method's weights went, whether they settled, and whether surgery changed anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradsurgery.report import words
from gradsurgery.report.facts import FINE, SETTLED, Drift, drift
from gradsurgery.report.finding import Finding
from gradsurgery.report.rules.at_work import UNCHANGED
from gradsurgery.report.run import Run


def weights(run: Run) -> list[Finding]:
    """Drifts of the loss weights, of σ² and of the method's weights, from the third quarter of the run to the last."""
    balancer = run.balancer if run.balancer and run.balancer != "none" else None
    whose = "The balancer's" if balancer is None else f"The {balancer} balancer's"
    method = "The method's" if run.method is None else f"{run.method}'s"
    labels = {"balance": f"{whose} loss weights", "variance": "The learned σ²", "weight": f"{method} gradient weights"}
    found = [finding for column, label in labels.items() for finding in _settled(run, column, label)]
    if run.balancer == "none":
        sentence = "No balancer ran: every task's loss entered with the weight that the code gives it."
        found.insert(0, Finding("weights", "ok", sentence, {"config.json": "balancer none"}))
    return found


def _settled(run: Run, column: str, label: str) -> list[Finding]:
    moved = {task: drift(run, f"{column}/{task}") for task in run.tasks if len(run.series(f"{column}/{task}")[0])}
    if not moved:
        return []
    if not all(math.isfinite(one.third) and math.isfinite(one.last) for one in moved.values()):
        return [
            Finding("weights", "note", f"{label}: too few logged steps to tell whether they settled.", {"columns": f"{column}/…"})
        ]
    evidence = {**{task: f"{one.third:.4f} → {one.last:.4f}" for task, one in moved.items()}, "columns": f"{column}/…"}
    if all(one.still for one in moved.values()):
        sentence = f"{label} stayed at {', '.join(f'{task} {one.last:.3f}' for task, one in moved.items())}."
        return [Finding("weights", "ok", sentence, evidence)]
    wandering = [task for task, one in moved.items() if not one.settled]
    verdict = "they had settled"
    if wandering:
        verdict = f"{words.listed(wandering)} still drifted by more than {words.percent(SETTLED)}"
    elif any(abs(one.last - one.third) > SETTLED * abs(one.third) for one in moved.values()):
        verdict = "that is no more than they scatter from step to step"
    sentence = f"{label}, mean of the third quarter of the run → of the last: {_moves(moved)}; {verdict}."
    return [Finding("weights", "note" if wandering else "ok", sentence, evidence)]


def _moves(moved: Mapping[str, Drift]) -> str:
    return ", ".join(f"{task} {one.third:.3f} → {one.last:.3f}" for task, one in moved.items())


def surgery(run: Run) -> list[Finding]:
    """How far the method's weights were from equal ones, which give the sum's direction."""
    table = np.array([run.column(f"weight/{task}") for task in run.tasks]).reshape(len(run.tasks), len(run.steps))
    table = table[:, np.isfinite(table).all(0)]
    if len(run.tasks) < 2 or not table.shape[1]:
        return []
    sizes = np.abs(table).mean(0)
    here = sizes > 0
    spread = (table.max(0) - table.min(0))[here] / sizes[here]
    if not len(spread):
        return []
    changed = float((spread > UNCHANGED).mean())
    evidence: dict[str, float | int | str] = {
        "(largest − smallest) / mean weight": float(spread.mean()), "steps with different weights": words.percent(changed),
        "recorded steps": len(spread), "columns": "weight/…",
    }  # fmt: skip
    whose = "The method's" if run.method is None else f"{run.method}'s"
    if spread.mean() <= UNCHANGED:
        differ = (
            f"differ among the tasks by less than {words.percent(UNCHANGED)} on average"
            if spread.max() > FINE
            else "are the same for all tasks"
        )
        size = float(sizes[here].mean())
        what = "the plain sum of the gradients" + ("" if abs(size - 1) <= UNCHANGED else f" times {words.number(size)}")
        sentence = f"{whose} weights {differ}: what the shared part received was {what}, or as good as."
        if run.layers is not None:
            sentence = f"{whose} weights {differ}, averaged over the layers."
        return [Finding("surgery", "ok", sentence, evidence)]
    sentence = (
        f"{whose} weights differ among the tasks in {words.percent(changed)} of the recorded steps, by "
        f"{words.percent(float(spread.mean()))} of their size on average: what the shared part received was not the plain sum."
    )
    if run.layers is not None:
        sentence = f"{sentence[:-1]} (means over the layers)."
    return [Finding("surgery", "note", sentence, evidence)]
