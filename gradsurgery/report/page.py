"""The page: one HTML file that asks for nothing from anywhere."""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np

import gradsurgery
from gradsurgery.report import words
from gradsurgery.report.figures import Picture
from gradsurgery.report.finding import Finding
from gradsurgery.report.reading import reading
from gradsurgery.report.run import Run
from gradsurgery.report.style import CSS
from gradsurgery.report.tables import tables

ICONS = {
    "ok": ("in order", '<circle cx="12" cy="12" r="10"/><path d="m7.5 12.5 3 3 6-6.5"/>'),
    "note": ("worth knowing", '<circle cx="12" cy="12" r="10"/><path d="M12 11v6M12 7.2v.1"/>'),
    "warning": ("worth acting on", '<path d="M12 2.8 22.6 21H1.4zM12 9.5v5.5M12 17.9v.1"/>'),
}
SETTINGS = (
    "method",
    "group_by",
    "every",
    "balancer",
    "form",
    "epochs",
    "batch_size",
    "lr",
    "head_lr",
    "seed",
    "device",
    "data",
    "backbone",
)
SHOWN = 60  # characters of a setting


def page(run: Run, found: Sequence[Finding], pictures: Sequence[Picture]) -> str:
    """HTML of a run, its findings (the verdict first) and its pictures; all text from the run is escaped."""
    name = run.path.resolve().name or str(run.path)
    verdict, rest = found[0], found[1:]
    sections = [
        _verdict(verdict),
        _section("Findings", _findings(rest, fold=verdict.severity != "ok")) if rest else "",
        _section("Pictures", _pictures(pictures)) if pictures else "",
        _section("Numbers", f'<div class="tables">{body}</div>') if (body := tables(run)) else "",
        _section("How to read this page", reading(run)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(name)} · gradsurgery report</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n"
        f"{_top(run, name)}\n<main>\n{''.join(sections)}\n</main>\n{_foot(run)}\n</body>\n</html>\n"
    )


def _top(run: Run, name: str) -> str:
    tasks = words.listed(run.tasks, 12)
    counted = f"{len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}" + (f": {tasks}" if tasks else "")
    recorded = f"{words.whole(len(run.steps))} recorded step{'s' if len(run.steps) != 1 else ''}"
    spanned = words.span(int(run.steps[0]), int(run.steps[-1])).removeprefix("steps ")
    layers = f", {len(run.layers.names)} layers" if run.layers is not None else ""
    method = f", with the method {escape(_setting(run.method))}" if run.method is not None else ""
    at = f". Gradients were measured{escape(run.at)}" if run.at else ""
    settings = [(key, run.setting(key)) for key in SETTINGS]
    chips = "".join(f"<li><b>{escape(key)}</b>{escape(_setting(value))}</li>" for key, value in settings if value is not None)
    return (
        f'<header class="top"><p class="eyebrow">gradsurgery report</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{escape(counted)}. {recorded} ({spanned}){layers}{method}{at}.</p>'
        + (f'<ul class="settings">{chips}</ul>' if chips else "") + "</header>"
    )  # fmt: skip


def _setting(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _verdict(verdict: Finding) -> str:
    return (
        f'<section class="verdict {verdict.severity}" aria-label="Verdict">{_icon(verdict.severity)}'
        f"<div><h2>{_text(verdict.sentence)}</h2>{_advice(verdict.advice)}</div>{_evidence(verdict.evidence)}</section>"
    )


def _findings(found: Sequence[Finding], *, fold: bool) -> str:
    """What is in order comes after what is not; beyond what is said of pairs it is folded where there is more to see."""
    striking = [finding for finding in found if finding.severity != "ok"]
    fine = [finding for finding in found if finding.severity == "ok"]
    if not striking:
        return _list(fine, "columns")
    pairs, others = ([one for one in fine if (one.kind == "conflict") == of_pair] for of_pair in (True, False))
    shown = _list(striking, "rows")
    if len(others) < 3:
        return shown + _list([*pairs, *others], "columns")
    opened = "" if fold else " open"
    folded = (
        f'<details class="fine"{opened}><summary>{len(others)} more findings in order</summary>{_list(others, "columns")}</details>'
    )
    return shown + _list(pairs, "columns") + folded


def _list(found: Sequence[Finding], layout: str) -> str:
    return f'<ul class="findings {layout}">{"".join(map(_finding, found))}</ul>' if found else ""


def _finding(finding: Finding) -> str:
    return (
        f'<li class="{finding.severity}">{_icon(finding.severity)}<p>{_text(finding.sentence)}</p>'
        f'<div class="beside">{_advice(finding.advice)}{_evidence(finding.evidence)}</div></li>'
    )


def _icon(severity: str) -> str:
    label, shape = ICONS[severity]
    return (
        f'<svg class="icon" role="img" aria-label="{label}" viewBox="0 0 24 24" fill="none" stroke="currentColor" '
        f'stroke-width="2" stroke-linecap="round" stroke-linejoin="round">{shape}</svg>'
    )


def _text(sentence: str) -> str:
    """Escaped, with numbers held together with what belongs to them."""
    return re.sub(r" (%|±|→) ?", lambda sign: f"\u00a0{sign[1]}" + ("\u00a0" if sign[1] == "±" else sign[0][2:]), escape(sentence))


def _advice(advice: str) -> str:
    linked = re.sub(r"arXiv:(\d{4}\.\d{5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', _text(advice))
    return f'<p class="advice">{linked}</p>' if advice else ""


def _evidence(evidence: Mapping[str, float | int | str]) -> str:
    if not evidence:
        return ""
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_value(value))}</dd>" for name, value in evidence.items())
    return f'<details><summary>Evidence</summary><dl class="evidence">{rows}</dl></details>'


def _value(value: float | int | str) -> str:
    return value if isinstance(value, str) else words.whole(value) if isinstance(value, int) else words.number(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _pictures(pictures: Sequence[Picture]) -> str:
    """Rows of three at a desk, the last ones of two where one would be left alone; of two on a tablet, a last one over both."""
    count = len(pictures)
    halves = {0: 0, 1: 4, 2: 2}[count % 3] if count > 1 else 0
    figures = [_picture(one, half=place >= count - halves) for place, one in enumerate(pictures)]
    return f'<div class="figures">{"".join(figures)}</div>'


def _picture(picture: Picture, *, half: bool) -> str:
    data = base64.b64encode(picture.png).decode()
    width, height = (int.from_bytes(picture.png[place : place + 4], "big") for place in (16, 20))
    return (
        f"<figure{' class=half' if half else ''}>"
        f"<figcaption><h3>{escape(picture.title)}</h3><p>{escape(picture.caption)}</p></figcaption>"
        f'<div class="plate"><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt, quote=True)}"></div></figure>'
    )


def _foot(run: Run) -> str:
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in run.remarks)
    packages = f"gradsurgery {gradsurgery.__version__}, numpy {np.__version__}, matplotlib {matplotlib.__version__}"
    made = f"Made from {escape(str(run.path))} with {packages}, Python {platform.python_version()}."
    return f"<footer><hr>{remarks}<p>{made}</p></footer>"
