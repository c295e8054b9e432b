"""What a log shows, in one sentence, with the numbers under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["ok", "note", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that a log shows.

    Attributes:
        kind: "verdict", "conflict", "layers", "dominance", "collapse", "loss", "steps", "absence", "surgery" or "weights".
        severity: "ok", "note" (worth knowing), or "warning" (worth acting on).
        sentence: in plain words; no more than the log shows.
        evidence: the numbers, steps and columns it rests on, by name.
        advice: what to try; empty where there is nothing to do.
    """

    kind: str
    severity: Severity
    sentence: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    advice: str = ""
