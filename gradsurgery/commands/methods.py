"""``gradsurgery methods``"""

from __future__ import annotations

import re
import sys

from gradsurgery.methods import methods
from gradsurgery.methods.registry import FAMILIES, PROPERTIES, MethodSpec
from gradsurgery.names import expected

WIDTH = 120


def show(name: str | None = None) -> int:
    """Prints a line a method, by family; or all that there is to say of one. -> exit status"""
    known = methods()
    if name is None:
        _table(sorted(known.values(), key=lambda spec: FAMILIES.index(spec.family)))  # stable: else as registered
        return 0
    if name not in known:
        print(f"error: {expected('method', name, known)}", file=sys.stderr)
        return 1
    _one(known[name])
    return 0


def _table(specs: list[MethodSpec]) -> None:
    rows = [["method", "family", "options", "source"]]
    rows += ([spec.name, spec.family, ", ".join(spec.options) or "–", _source(spec.paper)] for spec in specs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")


def _source(paper: str) -> str:
    """Who, where and when, without the title."""
    paper = paper.partition("; ")[0]  # of several the first
    parts = paper.split(", ")
    if len(parts) == 1:
        return paper
    number = re.search(r"arXiv:[\d.]+", paper)
    place = parts[-1].partition(" (")[0]
    return f"{parts[0]}, {place}" if number is None else f"{parts[0]}, {number[0]}"


def _one(spec: MethodSpec) -> None:
    print(f"{spec.name} ({spec.family})\n{spec.summary}")
    print("\noptions")
    for option, default in spec.options.items():
        print(f"  {option} = {default!r}")
    if not spec.options:
        print("  none")
    print("\nproperties, with the default options")
    for declared in PROPERTIES:
        if declared in spec.properties:
            print(f"  {declared}: {PROPERTIES[declared]}")
    if not spec.properties:
        print("  none")
    if spec.needs:
        print(f"\nneeds {', '.join(sorted(spec.needs))}")
    print(f"\npaper\n  {spec.paper}")
