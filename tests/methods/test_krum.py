"""Krum: who is whose neighbour, absent tasks, and what the solver does with options that no method passes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.krum import krum
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops.solvers import solve as reference_solve

OPS = torch.ops.gradsurgery
CASES = [(3, {}), (5, {"n_byzantine": 1}), (6, {"n_byzantine": 2, "n_selected": 3}), (9, {"n_selected": 9})]


def rows(tasks: int) -> Tensor:
    return torch.randn(tasks, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks))


@pytest.mark.parametrize(("tasks", "options"), CASES)
def test_absent_tasks_are_nobodys_neighbours(tasks: int, options: dict[str, int]) -> None:
    G = rows(tasks)
    expected = krum(G, **options)
    spread: list[Tensor | None] = [None, *G[:2], None, None, *G[2:], None]
    torch.testing.assert_close(gs.aggregate(spread, "krum", **options), expected)
    for method in ({"method": "krum"}, {"method": "crmogm", "inner": "krum"}):
        surgery = gs.GradientAggregator(**method, **options, tasks=len(spread))  # type: ignore[arg-type]
        torch.testing.assert_close(surgery.aggregate(spread), expected)
        assert surgery.weights is not None
        assert surgery.weights[[0, 3, 4, -1]].tolist() == [0.0] * 4
        assert surgery.weights.sum() == pytest.approx(1)


def test_a_present_zero_gradient_is_one_like_others() -> None:
    G = rows(4) + 5
    G[:2] = 0
    assert not gs.aggregate(list(G), "krum").any(), "the two lie closest to each other"


@pytest.mark.parametrize("tasks", [4, 5])
@pytest.mark.parametrize("options", [{"n_byzantine": 1}, {"n_selected": 4}])
def test_too_few_present_tasks_are_refused(tasks: int, options: dict[str, int]) -> None:
    surgery = gs.GradientAggregator("krum", tasks=tasks, **options)
    present = [*rows(tasks)[:3], *[None] * (tasks - 3)]
    with pytest.raises(ValueError, match=r"krum: expected at least n_byzantine \+ 3 and n_selected tasks with a gradient, found 3"):
        surgery.aggregate(present)


@pytest.mark.parametrize("options", [[0.0, 1.0], [1.0, 2.0], [-5.0, 3.0], [1e300, 1e300], [0.0, 0.0]])
@pytest.mark.parametrize("tasks", [1, 2, 5, 33])
def test_compiled_and_reference_agree(tasks: int, options: list[float], device: torch.device) -> None:
    G = rows(tasks)
    K = torch.stack([G @ G.T, (G + 1) @ (G + 1).T]).to(device)
    some = torch.ones(tasks, dtype=torch.float64, device=device)
    some[1::3] = 0
    given: Any
    for given in (None, some, torch.zeros_like(some)):
        w, report = OPS.solve(K, "krum", options, given)
        plain, plain_report = reference_solve(K, "krum", options, given)
        torch.testing.assert_close(w, plain, rtol=0, atol=0)
        assert torch.equal(report, plain_report)
        if given is not None:
            assert not w[:, given == 0].any()
