"""Numbers and names as they stand in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def signed(value: float, digits: int = 2) -> str:
    """+0.31, −0.02; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def percent(share: float) -> str:
    """37 %; less than a per cent, and all but one, keep a digit."""
    if not math.isfinite(share):
        return "–"
    value = 100 * share
    rounded = f"{value:.0f}"
    if (rounded == "0" and value > 0) or (rounded == "100" and value < 100):
        return f"{value:.1f} %" if 0.05 <= value <= 99.95 else ("< 0.1 %" if value < 1 else "> 99.9 %")
    return f"{rounded} %".replace("-", "−")


def number(value: float) -> str:
    """Three significant digits; powers of ten where it is far from 1."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}".replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", "−")


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def whole(value: int) -> str:
    """1,024"""
    return f"{value:,}".replace("-", "−")


def span(first: int, last: int) -> str:
    """step 7; steps 100–299"""
    return f"step {whole(first)}" if first == last else f"steps {whole(first)}–{whole(last)}"


def layer(name: str) -> str:
    """A layer's name; one without letters, which could be a step, is said to be one: layer 9."""
    return name if any(letter.isalpha() for letter in name) else f"layer {name}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """a, b and c; what is beyond ``most`` is counted."""
    given = list(names)
    shown = given if len(given) <= most else [*given[: most - 1], f"{len(given) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def shares(parts: Mapping[str, float]) -> str:
    """a 63 %, b 37 %"""
    return ", ".join(f"{name} {percent(part)}" for name, part in parts.items())
