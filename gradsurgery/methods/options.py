"""Checks of options that are numbers."""

from __future__ import annotations

import math


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raises unless an option is a finite number within its bounds.

    Raises:
        TypeError: it is no number.
        ValueError: it is infinite, NaN, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}.")
    bounds = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    holds = (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not (math.isfinite(value) and holds):
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        raise ValueError(f"{name}: expected a finite number{' ' + wanted if wanted else ''}, found {value}.")
