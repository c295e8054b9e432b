"""Tasks that some ranks lack, that all lack in a step, and heads that are on some ranks only: as one process with all of it."""

from __future__ import annotations

import pytest
import torch
from ranks.launch import ranks
from ranks.representation import Case
from ranks.representation_absent import (
    PLACED,
    SCHEDULE,
    Seen,
    alone,
    placed_heads,
    placed_heads_alone,
    together,
    unused_views,
    unused_views_alone,
)

CASES = [
    Case("pcgrad", options={"reduction": "mean"}),  # whose mean is over the tasks that are present anywhere
    Case("cagrad"),
    Case("upgrad"),
    Case("nashmtl"),
    Case("gradvac"),
    Case("mgda", options={"gn": "loss"}),  # which asks for the losses
    Case("pcgrad", options={"group_by": "tensor"}, pyramid=True),
]


def _close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_tasks_are_absent_on_some_ranks_or_on_all() -> None:
    outcomes: list[list[Seen]] = ranks(2, together, CASES)
    for k, case in enumerate(CASES):
        one = alone(case)
        expected = [tuple(t in {*here[0], *here[1]} for t in range(3)) for here in SCHEDULE]
        assert one.present == expected
        for outcome in outcomes:
            seen = outcome[k]
            assert seen.present == expected, case
            assert all(map(torch.equal, seen.weights, outcomes[0][k].weights))
            for name in ("parameters", "weights", "gram", "cosines", "memory"):
                _close(getattr(seen, name), getattr(one, name))


@pytest.mark.parametrize("form", ["split", "detach"])
def test_views_that_a_rank_does_not_use(form: str) -> None:
    for of_rank in ranks(2, unused_views, form):
        for (gradient, weights), (expected_gradient, expected_weights) in zip(of_rank, unused_views_alone(), strict=True):
            _close(gradient, expected_gradient)
            _close(weights, expected_weights)


def test_heads_that_are_on_some_ranks_only() -> None:
    expected, weights = placed_heads_alone(10)
    outcomes = ranks(3, placed_heads, 10)
    for rank, (parameters, found) in enumerate(outcomes):
        assert {name.split(".")[0] for name in parameters} == {"trunk", *(f"{rank}-{t}" for t in PLACED[rank])}
        for name, parameter in parameters.items():
            _close(parameter, expected[name])
        assert all(map(torch.equal, found, outcomes[0][1]))
        _close(found, weights)
