"""How to read the page: its words, its thresholds, and what it cannot say."""

from __future__ import annotations

from html import escape

from gradsurgery.report.facts import CONFLICT, LASTING, MODERATE, SURE
from gradsurgery.report.rules.collapse import FADED, VANISHED
from gradsurgery.report.rules.dominance import LOPSIDED
from gradsurgery.report.run import Run
from gradsurgery.report.series import BINS
from gradsurgery.report.words import percent, signed


def reading(run: Run) -> str:
    """A list of definitions, in HTML."""
    place = f"Here{run.at}" if run.at else "Where surgery took place"
    entries = {
        "Cosine": (
            "Of two tasks' gradients: 1 is agreement, 0 indifference, −1 opposition. Below zero a step along one gradient "
            "makes the other task worse, to first order."
        ),
        "Conflict": (
            f"A lasting stretch of steps with a mean cosine of {signed(CONFLICT)} or less, {SURE:.0f} standard errors below "
            f"zero. It is worth acting on from {percent(LASTING)} of the steps and a mean of {signed(MODERATE)} on. Single "
            "negative cosines are no conflict: around zero half of them are negative by chance."
        ),
        "Stretches": (
            "Parted where the mean level of the cosine changes: found to within a few steps where the change is sharp, less "
            f"exactly where it is slow. Logs of more than {BINS} steps are averaged in {BINS} bins first."
        ),
        "Standard error (±)": "Of a mean over steps, allowing for steps that resemble the ones before them.",
        "Length": (
            "Of a task's gradient as it arrives, loss weights included, and at a representation a float16 scaler's scale, too. "
            f"From a factor of {LOPSIDED:.0f} on lengths are lopsided."
        ),
        "Collapse": (
            f"A gradient or weight that falls below {percent(VANISHED)} of its start or of the others', and {percent(FADED)} of "
            "both, to the end. A loss that has fallen explains a short gradient; a long gradient, a small weight."
        ),
        "Where it was measured": (
            f"{place}. Gradients at a representation are a proxy for those of the trunk's parameters; the two can disagree."
        ),
        "What this page cannot say": (
            "Whether another method would train better: it is one run, and compares nothing. Small differences between "
            "methods need several seeds."
        ),
    }
    listed = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in entries.items())
    return f'<dl class="reading">{listed}</dl>'
