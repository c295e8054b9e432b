"""Every option of every balancer, and its tasks, are refused by name whatever is wrong with them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from balancers.problems import TASKS, build
from torch import nn

import gradsurgery as gs

Refusals = list[tuple[Any, type[Exception]]]

every = pytest.mark.parametrize("name", sorted(gs.balancers()))

NO_NUMBER: Refusals = [("x", TypeError), (True, TypeError), ([], TypeError), (None, TypeError)]
NO_FINITE_NUMBER: Refusals = [(math.nan, ValueError), (math.inf, ValueError), (10**400, ValueError)]
NO_NUMBER_EACH: Refusals = [
    *[("x", TypeError), (True, TypeError), (object(), TypeError), (math.nan, ValueError), (-math.inf, ValueError)],
    *[((1.0, 2.0), ValueError), ((1.0, "x", 2.0), TypeError), ((1.0, True, 2.0), TypeError), ((1.0, math.nan, 2.0), ValueError)],
    *[({"a": 1.0}, ValueError), ({"a": 1.0, "b": math.inf, "c": 2.0}, ValueError), (torch.ones(3, 1), ValueError)],
]
NO_POSITIVE: Refusals = [*NO_NUMBER, *NO_FINITE_NUMBER, (0.0, ValueError), (-1.0, ValueError)]
NOT_NEGATIVE: Refusals = [*NO_NUMBER, *NO_FINITE_NUMBER, (-1.0, ValueError)]
NO_COUNT: Refusals = [(1.5, TypeError), ("x", TypeError), (True, TypeError), (0, ValueError)]
NO_WORD: Refusals = [("x", ValueError), (1, ValueError), (None, ValueError)]

REFUSED: dict[str, Refusals] = {
    **dict.fromkeys(("temp", "mu"), NO_POSITIVE),
    **dict.fromkeys(("lr", "weight_decay", "eps", "alpha"), NOT_NEGATIVE),
    **dict.fromkeys(("window", "warmup"), NO_COUNT),
    **{name: [*NO_NUMBER_EACH, (None, TypeError)] for name in ("min_losses", "initial_log_scales", "initial_log_vars")},
    **dict.fromkeys(("weights", "reference"), NO_NUMBER_EACH),
    **dict.fromkeys(("form", "kinds", "parametrisation"), NO_WORD),
    "initial_steps": [*NO_COUNT, (None, TypeError)],
    "initial_losses": [*NO_NUMBER_EACH, (0.0, ValueError), ((1.0, -1.0, 2.0), ValueError)],
    "update_on_next_call": [("yes", TypeError), (1, TypeError), (None, TypeError)],
    "seed": [(True, TypeError), (1.0, TypeError), ("x", TypeError), (2**63, ValueError)],
    "layer": [(nn.ReLU(), ValueError), ([], ValueError), ("x", TypeError), (5, TypeError)],
    "aggregator": [("pcgrad", TypeError), (nn.ReLU(), TypeError)],
}


@every
def test_bad_options(name: str) -> None:
    for option in gs.balancers()[name].options:
        spec = gs.balancers()[name]
        make = partial(spec.build, TASKS) if option in ("layer", "aggregator") else partial(build, name, nn.Linear(2, 2))
        for value, error in REFUSED[option]:
            with pytest.raises(error, match=rf"^{option}(\[.*\])?: expected .*, found"):
                make(**{option: value})


def test_weights_that_have_to_be_given() -> None:
    with pytest.raises(TypeError, match=r"^weights: expected one number or 3"):
        gs.ConstantWeights(3, weights=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^weights\['1'\]: expected a finite number >= 0, found -1.0"):
        gs.SmoothTchebycheff(2, weights=(1.0, -1.0))


@every
@pytest.mark.parametrize(
    ("tasks", "error"),
    [
        *[("ab", TypeError), (True, TypeError), (1.0, TypeError), ((1, 2), TypeError), (None, TypeError)],
        *[((), ValueError), (0, ValueError), (-1, ValueError), (("a", "a"), ValueError)],
    ],
)
def test_bad_tasks(name: str, tasks: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^tasks: expected .*, found"):
        build(name, nn.Linear(2, 2), tasks)
