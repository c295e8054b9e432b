"""What to do, from all findings."""

from __future__ import annotations

from collections.abc import Sequence

from gradsurgery.report import words
from gradsurgery.report.facts import Conflict, conflicts
from gradsurgery.report.finding import Finding
from gradsurgery.report.run import Run

ENOUGH = 50  # recorded steps: with fewer, a mean cosine is known to ±0.05 at best where single steps scatter by a third
BROKEN = ("collapse", "loss", "steps", "absence")  # kinds of findings
FIRST = (
    "Compare with a tuned weighted sum first, over several seeds: it is a strong competitor "
    "(Kurin et al. 2022, arXiv:2201.04122; Xin et al. 2022, arXiv:2209.11379)."
)


def verdict(run: Run, found: Sequence[Finding]) -> Finding:
    """The first sentence of the report. It speaks of this log alone, and what it says of other methods is what to try."""
    evidence: dict[str, float | int | str] = {"recorded steps": len(run.steps), "tasks": len(run.tasks)}
    evidence |= {
        f"warnings: {kind}": sum(one.kind == kind and one.severity == "warning" for one in found) for kind in _kinds(found)
    }

    if missing := _missing(run):
        return Finding("verdict", "note", missing[0], evidence, missing[1])
    torn = [pair for pair in conflicts(run) if pair.worth_acting]
    between = {task for pair in torn for task in (pair.one, pair.other)}
    warned = [one for one in found if one.severity == "warning"]
    # That a loss rises is no fault of its own where its task is in a conflict: it is what a conflict does.
    broken = [one for one in warned if one.kind in BROKEN and not (one.kind == "loss" and one.evidence.get("rises") in between)]
    conflict, layers, lengths = bool(torn), *(any(one.kind == kind for one in warned) for kind in ("layers", "dominance"))
    if broken:
        more = " Conflict and lengths can be judged once that is repaired." if conflict or layers or lengths else ""
        sentence = f"Something is broken that no surgery repairs. {broken[0].sentence}"
        return Finding("verdict", "warning", sentence + more, evidence, "Repair that first; the findings below say where to look.")
    if conflict or layers:
        return Finding("verdict", "warning", _torn(torn), evidence, _next(conflict, lengths))
    if lengths:
        sentence = (
            "Surgery of directions is not needed: no pair of tasks conflicts for long. The gradients' lengths are lopsided, though."
        )
        advice = f"Weigh the losses, or try a balancer (uw, gradnorm) or a method that evens lengths out (imtlg, nashmtl). {FIRST}"
        return Finding("verdict", "note", sentence, evidence, advice)
    if len(run.steps) < ENOUGH:
        sentence = f"Nothing stands out, but {len(run.steps)} recorded steps are too few for a verdict."
        return Finding("verdict", "note", sentence, evidence, f"Record {ENOUGH} steps at least, better some hundreds.")
    sentence = (
        "Surgery is not needed, as far as this log shows: conflicts are absent, rare or weak, no task's gradient drowns the "
        "others, and no task has stopped learning."
    )
    return Finding(
        "verdict",
        "ok",
        sentence,
        evidence,
        "Keep the weighted sum of losses, and spend the effort on its weights and the learning rate.",
    )


def _missing(run: Run) -> tuple[str, str] | None:
    if not run.tasks:
        return (
            "There is no verdict: log.csv has no columns norm/…, weight/… or loss/…, so it says nothing about tasks.",
            'Record with gs.Monitor(surgery, "runs/x"), or train with one of the examples.',
        )
    if len(run.tasks) == 1:
        return f"There is one task, {run.tasks[0]}, and so nothing for it to conflict with.", ""
    if not any(len(run.series(f"norm/{task}")[0]) for task in run.tasks):
        return (
            "There is no verdict: log.csv holds no lengths of gradients (norm/…), so conflict and dominance cannot be seen.",
            "Methods that treat every coordinate by itself record them with GradientAggregator(..., diagnostics=True).",
        )
    if not any(len(run.series(column)[0]) for column in run.pairs.values()):
        return "There is no verdict: no two tasks had a gradient, and a cosine, in the same recorded step.", ""
    return None


def _torn(torn: Sequence[Conflict]) -> str:
    if not torn:
        return "Tasks conflict at some layers, where surgery may help; over all that is shared no pair conflicts for long."
    worst = sorted(torn, key=lambda pair: pair.depth * pair.lasting)
    first = worst[0]
    when = words.listed((words.span(one.first, one.last) for one in first.stretches), 3)
    most = f"in {words.percent(first.lasting)} of the recorded steps ({when})" if first.lasting < 1 else "throughout"
    others = words.listed((pair.name for pair in worst[1:]), 4)
    more = f"; so do {others}" if len(worst) > 2 else f"; so does {others}" if others else ""
    return f"Surgery may help: {first.one} and {first.other} pull the shared part apart {most}{more}."


def _next(conflict: bool, lengths: bool) -> str:
    where = "" if conflict else ' with group_by="layer", so that it acts where the conflict is'
    advice = f"Try pcgrad, upgrad or cagrad{where}"
    advice += "; lengths are lopsided, too, which nashmtl or imtlg take into account. " if lengths else ". "
    return advice + FIRST


def _kinds(found: Sequence[Finding]) -> list[str]:
    return sorted({one.kind for one in found if one.severity == "warning"})
