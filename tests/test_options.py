"""Checks of options, and that every method has them: what an option does not take is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gradsurgery as gs
from gradsurgery.options import check_bool, check_choice, check_integer, check_number

HUGE = 10**400  # no float64, and too long for Python to print where it is ten times as long


@pytest.mark.parametrize("value", [0.5, 1, 1e-300])
def test_numbers_within_their_bounds_pass(value: float) -> None:
    check_number("rate", value, above=0, at_most=1)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("x", TypeError, "rate: expected a number, found str"),
        (True, TypeError, "rate: expected a number, found bool"),
        (None, TypeError, "rate: expected a number, found NoneType"),
        (torch.tensor(0.5), TypeError, "rate: expected a number, found Tensor"),
        (0.0, ValueError, "rate: expected a finite number > 0 and <= 1, found 0.0"),
        (1.5, ValueError, "rate: expected a finite number > 0 and <= 1, found 1.5"),
        (float("nan"), ValueError, "rate: .*, found nan"),
        (HUGE, ValueError, "rate: .*, found an integer of 1329 bits"),
        pytest.param(HUGE**20, ValueError, "rate: .*, found an integer of 26576 bits", id="huge"),
    ],
)
def test_other_numbers_are_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_number("rate", value, above=0, at_most=1)


def test_ends_are_open_or_closed() -> None:
    check_number("rate", 1, at_least=1)
    check_number("rate", -1e308)
    for bound in ({"above": 1}, {"below": 1}):
        with pytest.raises(ValueError, match=r"rate: expected a finite number [<>] 1, found 1"):
            check_number("rate", 1, **bound)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate: expected a finite number, found inf"):
        check_number("rate", float("inf"))


def test_integers() -> None:
    check_integer("count", 1, at_least=1, at_most=3)
    check_integer("count", -(10**30))
    for value in (0, 4, HUGE):
        with pytest.raises(ValueError, match="count: expected an integer >= 1 and <= 3, found"):
            check_integer("count", value, at_least=1, at_most=3)
    for value in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="count: expected an integer, found"):
            check_integer("count", value, at_least=1, at_most=3)


def test_bools() -> None:
    check_bool("flag", True)
    for value in (1, 0.0, "no", None, torch.tensor(True)):
        with pytest.raises(TypeError, match="flag: expected True or False, found"):
            check_bool("flag", value)


def test_choices_are_of_their_type() -> None:
    check_choice("mode", "sum", ("sum", "mean"))
    check_choice("mode", 1, (0, 1))
    for value in (1.0, True, "1", None, [1], torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="mode: expected one of 0, 1, found"):
            check_choice("mode", value, (0, 1))


# --- every option of every method ---------------------------------------------------------------------------------------------

NEVER = (object(), "no such word", ["x"], {}, [float("nan")], [], HUGE)  # no option takes these
BY_TYPE: dict[type, tuple[Any, ...]] = {  # nor, by the type of its default, these
    bool: (1, 0.0, None),
    int: (True, 1.0, 0.5, float("nan"), None, -1),
    float: (True, float("nan"), float("inf"), -1.0, None),
    str: (3, 1.0, True, None, float("nan")),
    type(None): (True, 0.5 + 1j),
}
CASES = [
    pytest.param(name, option, value, id=f"{name}-{option}-{repr(value)[:12]}")
    for name, spec in gs.methods().items()
    for option, default in spec.options.items()
    for value in (*NEVER, *BY_TYPE[type(default)])
]


@pytest.mark.parametrize(("method", "option", "value"), CASES)
def test_every_method_names_the_option_that_it_refuses(method: str, option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{option}(\[0\])?: expected .*found"):
        gs.GradientAggregator(method, **{option: value})


def test_the_longest_option_of_cagrad_is_finite_when_squared() -> None:
    K = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    assert gs.weights(K, "cagrad", c=1e150, rescale=1).isfinite().all()
    with pytest.raises(ValueError, match=r"c: expected a finite number >= 0 and <= 1e\+150, found 1e\+200"):
        gs.weights(K, "cagrad", c=1e200, rescale=1)
