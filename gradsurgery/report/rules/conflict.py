"""Which pairs of tasks conflict, how strongly, and when."""

from __future__ import annotations

from collections.abc import Sequence

from gradsurgery.report import words
from gradsurgery.report.facts import CONFLICT, MODERATE, STRONG, Conflict, conflicts
from gradsurgery.report.finding import Finding
from gradsurgery.report.rules.at_work import at_work
from gradsurgery.report.run import Run
from gradsurgery.report.series import SHORTEST

ALONE = 6  # pairs: of more, those without conflict share a sentence
MOST = 10  # sentences on conflicts, the deepest; the table has all


def conflict(run: Run) -> list[Finding]:
    """A sentence a pair."""
    pairs = conflicts(run)
    here = sorted((pair for pair in pairs if pair.stretches), key=lambda pair: pair.depth * pair.lasting)
    found = [_in_conflict(run, pair) for pair in here[:MOST]]
    if len(here) > MOST:
        found.append(_summary(f"{len(here) - MOST} more pairs conflict, less than these", here[MOST:], "note"))
    rest = [pair for pair in pairs if not pair.stretches]
    if len(pairs) <= ALONE:
        found += [_without(pair) for pair in rest]
    elif rest:
        about = "No pair of tasks conflicts" if not here else f"{len(rest)} of {len(pairs)} pairs of tasks do not conflict"
        found.append(_summary(about, rest, "ok"))
    return found


def _in_conflict(run: Run, pair: Conflict) -> Finding:
    strength = "strongly" if pair.depth <= STRONG else "moderately" if pair.depth <= MODERATE else "weakly"
    steps = [words.span(stretch.first, stretch.last) for stretch in pair.stretches]
    throughout = pair.lasting == 1
    when = f"in {words.listed(steps, 3)}"
    if throughout:
        when = f"throughout ({steps[0]})" if pair.steps == len(run.steps) else f"in all steps that have both ({steps[0]})"
    count = sum(stretch.mean.count for stretch in pair.stretches)
    negative = sum(stretch.negative * stretch.mean.count for stretch in pair.stretches) / count
    digits = 3 if len(pair.stretches) == 1 and pair.stretches[0].mean.error < 0.005 else 2  # no error of 0.00
    error = f" ± {pair.stretches[0].mean.error:.{digits}f}" if len(pair.stretches) == 1 else ""
    sentence = (
        f"{pair.one} and {pair.other} conflict {strength} {when}: their cosine averages {words.signed(pair.depth, digits)}{error} "
        f"there, and {words.percent(negative)} of those {words.whole(count)} recorded steps are negative"
    )
    if not throughout:
        outside = (pair.mean.value * pair.steps - pair.depth * count) / (pair.steps - count)
        sentence += f"; it averages {words.signed(outside)} in the others"
    if not pair.worth_acting:
        sentence += ". That is short or weak enough to leave alone"
    evidence: dict[str, float | int | str] = {
        "stretches": "; ".join(f"{words.span(one.first, one.last)}: {words.signed(one.mean.value, 3)} ± {one.mean.error:.3f}"
                               for one in pair.stretches),
        "mean cosine, all steps": pair.mean.value, "its standard error": pair.mean.error, "lowest cosine": pair.lowest,
        "negative, all steps": words.percent(pair.rate), "recorded steps": pair.steps, "column": pair.column,
    }  # fmt: skip
    advice = "That is what surgery of directions is for: pcgrad, upgrad, cagrad." if pair.worth_acting and not at_work(run) else ""
    return Finding("conflict", "warning" if pair.worth_acting else "note", f"{sentence}.", evidence, advice)


def _without(pair: Conflict) -> Finding:
    names = f"{pair.one} and {pair.other}"
    evidence: dict[str, float | int | str] = {
        "mean cosine": pair.mean.value, "standard error": pair.mean.error, "lowest cosine": pair.lowest,
        "negative": words.percent(pair.rate), "recorded steps": pair.steps, "column": pair.column,
    }  # fmt: skip
    if not pair.steps:
        sentence = f"{names} never had a gradient in the same recorded step."
        return Finding("conflict", "note", sentence, {"recorded steps": 0, "column": pair.column})
    average = f"their cosine averages {words.signed(pair.mean.value, 3)}"
    over = f"{words.whole(pair.steps)} recorded step{'s' if pair.steps > 1 else ''}"
    if pair.steps < SHORTEST:
        sentence = f"{names}: {average} over {over}, which are too few to tell whether they conflict."
        return Finding("conflict", "note", sentence, evidence)
    average += f" ± {pair.mean.error:.3f} over {over}"
    negative = f"{words.percent(pair.rate)} of the steps are negative"
    if pair.mean.value <= CONFLICT:
        sentence = f"{names}: {average}, which is too uncertain to call it a conflict; {negative}."
        return Finding("conflict", "note", sentence, evidence, "Record more steps.")
    if pair.rate > 0.25:
        because = "in passing"
        if pair.mean.value < -CONFLICT:
            barely = pair.rate > 0.75
            because = "but so little as makes no difference" if barely else "as chance makes them of cosines around zero"
        sentence = f"{names} do not conflict: {average}. {negative}, {because}; no stretch of steps stands out."
    else:
        sentence = f"{names} do not conflict: {average}; {negative}."
    return Finding("conflict", "ok", sentence, evidence)


def _summary(about: str, pairs: Sequence[Conflict], severity: str) -> Finding:
    means = [pair.mean.value for pair in pairs if pair.steps]
    sentence = f"{about}."
    if means:
        sentence = f"{about}: mean cosines from {words.signed(min(means))} to {words.signed(max(means))}."
    evidence = {pair.name: f"{words.signed(pair.mean.value, 3)} ± {pair.mean.error:.3f}" for pair in pairs if pair.steps}
    return Finding("conflict", "ok" if severity == "ok" else "note", sentence, {**evidence, "columns": "cosine/…"})
