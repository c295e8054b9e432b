"""Checks of options: what a user may set on a method or a balancer is refused by name, before anything is computed with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MOST_TASKS = 2**31 - 1
"""An option that counts tasks is at most this: the operators count them in 32 bits."""


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raises unless an option is a finite number within its bounds.

    Args:
        name: of the option, with which the error begins.
        value: what was given.
        above: value > above; an open end.
        at_least: value >= at_least.
        below: value < below; an open end.
        at_most: value <= at_most.

    Raises:
        TypeError: it is no number, or a bool.
        ValueError: it is infinite, NaN, no float64, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}.")
    if not (_is_finite(value) and _within(value, above, at_least, below, at_most)):
        wanted = _bounds(above, at_least, below, at_most)
        raise ValueError(f"{name}: expected a finite number{wanted}, found {_shown(value)}.")


def check_integer(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> None:
    """Raises unless an option is an integer from ``at_least`` to ``at_most``.

    Raises:
        TypeError: it is no integer, or a bool; a float is none, even where it has no fraction.
        ValueError: it is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}.")
    if not _within(value, None, at_least, None, at_most):
        raise ValueError(f"{name}: expected an integer{_bounds(None, at_least, None, at_most)}, found {_shown(value)}.")


def check_bool(name: str, value: Any) -> None:
    """Raises unless an option is True or False.

    Raises:
        TypeError: it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {type(value).__name__}.")


def check_choice(name: str, value: Any, choices: Sequence[str | int]) -> None:
    """Raises unless an option is one of the choices, in value and type: neither 1.0 nor True is the choice 1.

    Raises:
        ValueError: it is not.
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, found {_shown(value)}.")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float64
        return False


def _within(value: float, above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> bool:
    return (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _bounds(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    """The bounds in words, as in `` > 0 and <= 1``; empty for none."""
    bounds = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    wanted = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    return f" {wanted}" if wanted else ""


def _shown(value: Any) -> str:
    """The value for an error message; Python itself refuses to print long integers."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
