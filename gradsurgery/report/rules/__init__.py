"""What a log shows, in sentences: one file a question."""

from __future__ import annotations

from gradsurgery.report.finding import Finding
from gradsurgery.report.rules.by_layer import by_layer
from gradsurgery.report.rules.collapse import collapse
from gradsurgery.report.rules.conflict import conflict
from gradsurgery.report.rules.dominance import dominance
from gradsurgery.report.rules.steps import steps
from gradsurgery.report.rules.verdict import verdict
from gradsurgery.report.rules.weights import surgery, weights
from gradsurgery.report.run import Run

RULES = (collapse, steps, conflict, by_layer, dominance, surgery, weights)
ORDER = {"warning": 0, "note": 1, "ok": 2}


def findings(run: Run) -> list[Finding]:
    """The verdict, then warnings, notes, and what is in order; of one severity, in the order of the rules."""
    found = sorted((finding for rule in RULES for finding in rule(run)), key=lambda finding: ORDER[finding.severity])
    return [verdict(run, found), *found]
