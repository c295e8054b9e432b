"""``gradsurgery methods``"""

from __future__ import annotations

from gradsurgery.methods import methods
from gradsurgery.methods.registry import FAMILIES


def show() -> int:
    """Prints a line a method, by family. -> exit status"""
    specs = sorted(methods().values(), key=lambda spec: FAMILIES.index(spec.family))  # stable: else as registered
    rows = [["method", "family", "options", "source"]]
    for spec in specs:
        options = ", ".join(f"{name}={default!r}" for name, default in spec.options.items())
        rows.append([spec.name, spec.family, options or "–", spec.paper])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
