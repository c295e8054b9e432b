"""What to do, from all findings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradsurgery.report import words
from gradsurgery.report.facts import Conflict, conflicts
from gradsurgery.report.finding import Finding, Severity
from gradsurgery.report.rules.at_work import acted, at_work
from gradsurgery.report.rules.steps import present
from gradsurgery.report.run import Run

ENOUGH = 50  # recorded steps: with fewer, a mean cosine is known to ±0.05 at best where single steps scatter by a third
BROKEN = ("collapse", "loss", "steps", "absence")  # kinds of findings
COMPARE = 'compare with a tuned "sum" over several seeds, by the metrics of validation'
PAPERS = "(Kurin et al. 2022, arXiv:2201.04122; Xin et al. 2022, arXiv:2209.11379)"
FIRST = f"Compare with a tuned weighted sum first, over several seeds: it is a strong competitor {PAPERS}."
SOURCES = f"It is a strong competitor {PAPERS}."


def verdict(run: Run, found: Sequence[Finding]) -> Finding:
    """The first sentence of the report. It speaks of this log alone, and what it says of other methods is what to try."""
    said = _verdict(run, found)
    few = _measured(run)
    if few >= ENOUGH or _missing(run):
        return said
    sentence = said.sentence
    if "too few" not in sentence:
        sentence += f" {_steps(few)} {'is' if few == 1 else 'are'} too few to be sure: record {ENOUGH} at least."
    return Finding(said.kind, said.severity, sentence, {**said.evidence, "enough for a verdict": f"{ENOUGH} steps"}, said.advice)


def _verdict(run: Run, found: Sequence[Finding]) -> Finding:
    evidence: dict[str, float | int | str] = {"recorded steps": len(run.steps), "tasks": len(run.tasks)}
    evidence |= {
        f"warnings: {kind}": sum(one.kind == kind and one.severity == "warning" for one in found) for kind in _kinds(found)
    }

    if missing := _missing(run):
        return Finding("verdict", "note", missing[0], evidence, missing[1])
    torn = [pair for pair in conflicts(run) if pair.worth_acting]
    between = {task for pair in torn for task in (pair.one, pair.other)}
    warned = [one for one in found if one.severity == "warning"]
    # A loss that rises may be meant to, and where its task is in a conflict, that is what a conflict does.
    broken = [one for one in warned if one.kind in BROKEN and "rises" not in one.evidence]
    risen = [one for one in warned if "rises" in one.evidence and one.evidence["rises"] not in between]
    conflict, layers, lengths = bool(torn), *(any(one.kind == kind for one in warned) for kind in ("layers", "dominance"))
    if broken:
        more = " Conflict and lengths can be judged once that is repaired." if conflict or layers or lengths else ""
        sentence = f"Something is broken that no surgery repairs. {broken[0].sentence}"
        return Finding("verdict", "warning", sentence + more, evidence, "Repair that first; the findings below say where to look.")
    if conflict or layers:
        method = at_work(run)
        part = acted(run, torn) if method else None
        if method:
            evidence["method"] = method
            evidence["conflicting steps with different weights"] = "no weights recorded" if part is None else words.percent(part)
        severity: Severity = "note" if method else "warning"
        return Finding("verdict", severity, _torn(run, torn, method, part), evidence, _next(method, conflict, lengths))
    severity, sentence, advice = _calm(run, found, risen, lengths=lengths)
    return Finding("verdict", severity, sentence, evidence, advice)


def _calm(run: Run, found: Sequence[Finding], risen: Sequence[Finding], *, lengths: bool) -> tuple[Severity, str, str]:
    """Severity, sentence and advice where nothing is broken and no pair of tasks conflicts for long."""
    measured = _measured(run)
    if measured < ENOUGH:
        steps = f"{_steps(measured)} with a cosine"
        but = " but that the gradients' lengths are lopsided" if lengths else ""
        sentence = f"Nothing stands out{but}: {steps} {'is' if measured == 1 else 'are'} too few for a verdict."
        return "note", sentence, f"Record {ENOUGH} steps at least, better some hundreds."
    if unsure := sorted((one for one in conflicts(run) if one.leaning), key=lambda one: one.mean.value):
        pair = unsure[0]
        average = f"{words.signed(pair.mean.value)} ± {pair.mean.error:.2f}"
        sentence = f"No conflict is certain, but {pair.one} and {pair.other} lean to one: their cosine averages {average}."
        return "note", sentence, "Record more steps."
    if risen:
        sentence = f"No pair of tasks conflicts for long, so that surgery has nothing to do; but {risen[0].sentence}"
        return "note", sentence, risen[0].advice
    if lengths:
        sentence = (
            "Surgery of directions is not needed: no pair of tasks conflicts for long. The gradients' lengths are lopsided, though."
        )
        advice = f"Weigh the losses, or try a balancer (uw, gradnorm) or a method that evens lengths out (imtlg, nashmtl). {FIRST}"
        if method := at_work(run):
            advice = f"Here {method} weighed them: see its weights below, and {COMPARE}. {SOURCES}"
        return "note", sentence, advice
    faded = any(one.kind == "collapse" for one in found)
    sentence = (
        "Surgery is not needed, as far as this log shows: conflicts are absent, rare or weak"
        f"{' and' if faded else ','} no task's gradient drowns the others{'' if faded else ', and none has gone to nothing'}."
    )
    advice = "Keep the weighted sum of losses, and spend the effort on its weights and the learning rate."
    if method := at_work(run):
        advice = f"This log shows no need for {method}: {COMPARE}."
    return "ok", sentence, advice


def _measured(run: Run) -> int:
    """Recorded steps with a cosine, of the pair with the most."""
    return max((len(run.series(column)[0]) for column in run.pairs.values()), default=0)


def _steps(count: int) -> str:
    return f"{words.whole(count)} recorded step{'s' if count != 1 else ''}"


def _missing(run: Run) -> tuple[str, str] | None:
    if not run.tasks:
        return (
            "There is no verdict: log.csv has no columns norm/…, weight/… or loss/…, so it says nothing about tasks.",
            'Record with gs.Monitor(surgery, "runs/x"), or train with one of the examples.',
        )
    if len(run.tasks) == 1:
        return f"There is one task, {run.tasks[0]}, and so nothing for it to conflict with.", ""
    if not any(len(run.series(f"norm/{task}")[0]) for task in run.tasks):
        here = np.sum(list(present(run).values()), axis=0)
        if (here == 1).any() and (here <= 1).all():
            return "There is no verdict: in every recorded step one task alone had a gradient, which conflicts with none.", ""
        return (
            "There is no verdict: log.csv holds no lengths of gradients (norm/…), so conflict and dominance cannot be seen.",
            "Methods that treat every coordinate by itself record them with GradientAggregator(..., diagnostics=True).",
        )
    if not any(len(run.series(column)[0]) for column in run.pairs.values()):
        return "There is no verdict: no two tasks had a gradient, and a cosine, in the same recorded step.", ""
    return None


def _torn(run: Run, torn: Sequence[Conflict], method: str | None, part: float | None) -> str:
    if not torn and method:
        return f"Tasks conflict at some layers, with {method} at work; over all that is shared no pair conflicts for long."
    if not torn:
        return "Tasks conflict at some layers, where surgery may help; over all that is shared no pair conflicts for long."
    worst = sorted(torn, key=lambda pair: pair.depth * pair.lasting)
    first = worst[0]
    when = words.listed((words.span(one.first, one.last) for one in first.stretches), 3)
    always = first.steps == len(run.steps)
    most = "throughout" if always else f"in all recorded steps that have both ({when})"
    if first.lasting < 1:
        most = f"in {words.percent(first.lasting)} of the recorded steps{'' if always else ' that have both'} ({when})"
    others = words.listed((pair.name for pair in worst[1:]), 4)
    more = f"; so do {others}" if len(worst) > 2 else f"; so does {others}" if others else ""
    so = f"The tasks conflict, and {_acted(method, part)}" if method else "Surgery may help"
    return f"{so}: {first.one} and {first.other} pull the shared part apart {most}{more}."


def _acted(method: str, part: float | None) -> str:
    if part is None:
        return f"{method} was at work"
    if part == 0:
        return f"{method} ran, with the same weight for every task"
    return f"{method} acted on it" + ("" if part == 1 else f" in {words.percent(part)} of those steps")


def _next(method: str | None, conflict: bool, lengths: bool) -> str:
    if method:
        return f"Whether {method} helps, this run cannot say: {COMPARE}. {SOURCES}"
    where = "" if conflict else ' with group_by="layer", so that it acts where the conflict is'
    advice = f"Try pcgrad, upgrad or cagrad{where}"
    advice += "; lengths are lopsided, too, which nashmtl or imtlg take into account. " if lengths else ". "
    return advice + FIRST


def _kinds(found: Sequence[Finding]) -> list[str]:
    return sorted({one.kind for one in found if one.severity == "warning"})
