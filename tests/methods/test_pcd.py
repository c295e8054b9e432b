"""PCD: its constraints, its moving averages and how they resume, and the cases in which constraints cannot be met."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from methods.gradients import assert_equal_vectors, magnitude, matrices
from oracles.pcd import pcd
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Step, build
from gradsurgery.methods.pcd import PCD


def rows(*given: list[float]) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


def step(surgery: gs.GradientAggregator, gradients: dict[str, Tensor]) -> Tensor:
    """One step on given gradients. [N]"""
    x = torch.zeros_like(next(iter(gradients.values()))).requires_grad_()
    features = surgery.detach(x)
    for name, g in gradients.items():
        with surgery.task(name):
            (features * g).sum().backward()
    surgery.backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("primary", [0, 1])
@given(data=st.data())
def test_equals_least_distance_programming_on_full_vectors(primary: int, data: st.DataObject) -> None:
    G = data.draw(matrices(tasks=(2, 5), scaled=False))
    assume(bool(G[primary].any()))
    tau = data.draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    method = build("pcd", tau=tau, primary=primary, eps=1e-3)
    solution = method.solve(gs.gram(G))
    assert solution.status is not None
    w = solution.weights
    assume(float((w @ G).norm()) > 1e-4 * magnitude(w, G))  # else its direction is rounding error
    assert_equal_vectors(w @ G, pcd(G, tau, 1e-3, primary), magnitude(w, G), 1e-6)


@given(G=matrices(tasks=(2, 5)))
def test_the_primary_keeps_its_length_and_the_others_their_share(G: Tensor) -> None:
    assume(bool(G.any(dim=1).all()))
    method = build("pcd", tau=0.1, eps=0.0)
    solution = method.solve(gs.gram(G))
    assert solution.status is not None
    w = solution.weights
    out = w @ G
    assume(bool(w.any()))
    assert float(out.norm()) == pytest.approx(float(G[0].norm()), abs=1e-7 * magnitude(w, G))
    if solution.status[1] == 0:
        unit = w / w[0] / G[0].norm()  # with the primary's normalised gradient in it once
        assert bool((G[1:] @ (unit @ G) >= (0.1 - 1e-7 * magnitude(unit, G)) * G[1:].norm(dim=1)).all())


def test_two_tasks_that_agree_leave_the_primary_alone() -> None:
    torch.testing.assert_close(gs.aggregate(rows([1, 2, 0], [2, 1, 1]), "pcd"), rows([1, 2, 0])[0])


def test_constraints_that_no_direction_meets_are_dropped() -> None:
    G = rows([1, 2], [3, 0], [-1, 0])
    solution = build("pcd").solve(gs.gram(G))
    assert solution.status is not None
    assert solution.status[:2].tolist() == [1, 1]
    torch.testing.assert_close(solution.weights @ G, G[0])
    free = build("pcd", tau=0.0).solve(gs.gram(G))
    assert free.status is not None
    assert free.status[:2].tolist() == [1, 0]
    torch.testing.assert_close(free.weights @ G, rows([0, 5**0.5])[0])


def test_a_primary_without_gradient_gives_zero_and_other_zeros_constrain_nothing() -> None:
    assert not gs.aggregate(rows([0, 0], [1, 2]), "pcd").any()  # type: ignore[union-attr]
    absent: Any = [None, rows([1, 2])[0]]
    assert not gs.aggregate(absent, "pcd").any()  # type: ignore[union-attr]
    torch.testing.assert_close(gs.aggregate(rows([1, 2], [0, 0]), "pcd"), rows([1, 2])[0])
    assert not gs.aggregate(rows([1, 0], [-1, 0]), "pcd", tau=0.0).any()  # type: ignore[union-attr]  # d = 0


@pytest.mark.parametrize("length", [0.3, 1.0, 5.0])
def test_the_only_other_gradient_opposed_turns_the_primary_around(length: float) -> None:
    primary = rows([1, 2, 0.5])
    out = gs.aggregate(torch.cat([primary, -length * primary]), "pcd")
    torch.testing.assert_close(out, -primary[0])


def test_one_number_a_task() -> None:
    G = rows([1, 0, 0], [-1, 1, 0], [-1, 0, 1])
    shared = gs.weights(gs.gram(G), "pcd", tau=0.3)
    assert torch.equal(gs.weights(gs.gram(G), "pcd", tau=[0.9, 0.3, 0.3]), shared)
    assert torch.equal(gs.weights(gs.gram(G), "pcd", tau=torch.tensor([0.0, 0.3, 0.3], dtype=torch.float64)), shared)
    assert not torch.allclose(gs.weights(gs.gram(G), "pcd", tau=[0.0, 0.3, 0.6]), shared)


def test_the_averages_are_bias_corrected_and_wait_for_absent_tasks() -> None:
    beta, generator = 0.9, torch.Generator().manual_seed(3)
    surgery = gs.GradientAggregator("pcd", tasks=("main", "other", "late"), tau=0.5, beta=beta, eps=1e-8)
    average, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for k in range(6):
        G = torch.randn(3, 5, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [10.0], [0.1]])
        present = [0, 1, 2] if k % 2 else [0, 1]
        out = step(surgery, {name: G[t] for t, name in enumerate(("main", "other", "late")) if t in present})
        average[present] = beta * average[present] + (1 - beta) * G[present].square().sum(1)
        count[present] += 1
        squares = (average / (1 - beta**count))[present]
        torch.testing.assert_close(out, pcd(G[present], 0.5, square_norms=squares), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(surgery.square_norms, torch.stack([average, count], dim=1))


def test_a_resumed_run_continues_to_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(5)
    steps = [dict(zip(("a", "b", "c"), torch.randn(3, 4, generator=generator), strict=True)) for _ in range(6)]
    whole, first, second = (gs.GradientAggregator("pcd", tasks=("a", "b", "c"), tau=0.5) for _ in range(3))
    expected = [step(whole, gradients) for gradients in steps]
    for gradients in steps[:3]:
        step(first, gradients)
    second.load_state_dict(first.state_dict())
    for gradients, out in zip(steps[3:], expected[3:], strict=True):
        assert torch.equal(step(second, gradients), out)
    fresh = gs.GradientAggregator("pcd", tasks=("a", "b", "c"), tau=0.5)
    assert not torch.equal(step(fresh, steps[3]), expected[3]), "the memory must matter"


def test_a_step_that_is_not_finite_changes_no_average() -> None:
    method = build("pcd")
    state = torch.tensor([[4.0, 3.0], [9.0, 3.0]], dtype=torch.float64)
    before = state.clone()
    w = method.weights(rows([1, torch.nan], [torch.nan, 1]), Step(state={PCD.state_name or "": state}))
    assert w.isnan().all()
    assert torch.equal(state, before)


@given(data=st.data())
def test_without_eps_the_scale_of_a_secondary_gradient_does_not_matter(data: st.DataObject) -> None:
    G = data.draw(matrices(tasks=(2, 5), scaled=False))
    factors = torch.tensor([1.0, *data.draw(st.lists(st.sampled_from([1e-6, 0.5, 1e6]), min_size=len(G) - 1, max_size=len(G) - 1))])
    (w, out), (_, scaled) = ((w, w @ R) for R in (G, factors.double()[:, None] * G) for w in [gs.weights(R @ R.T, "pcd", eps=0.0)])
    assume(float(out.norm()) > 1e-4 * magnitude(w, G))
    assert_equal_vectors(scaled, out, magnitude(w, G), 1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tau": 1.5}, ValueError, "tau: expected a finite number >= 0 and <= 1, found 1.5"),
        ({"tau": None}, TypeError, "tau: expected a number, found NoneType"),
        ({"tau": [0.1, 2.0]}, ValueError, r"tau\[1\]: expected a finite number >= 0 and <= 1, found 2.0"),
        ({"tau": [0.1]}, ValueError, "tau: expected 2 numbers, one a task, found 1"),
        ({"beta": 1.0}, ValueError, r"beta: expected a finite number >= 0 and < 1, found 1.0"),
        ({"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0, found -1e-08"),
        ({"primary": -1}, ValueError, "primary: expected an integer >= 0 and <= 2147483647, found -1"),
        ({"primary": 2}, ValueError, "primary: expected the index of one of 2 tasks, found 2"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(torch.eye(2, dtype=torch.float64), "pcd", **options)
