"""Methods of the cross-Gram matrix of two batches: SDMGrad and MoDo."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from ops.cross_calls import OPTIONS, overflowing, unbalanced
from oracles.cross import MoDoOracle, SDMGradOracle, project
from torch import Tensor

import gradsurgery as gs
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.methods import Step, build
from gradsurgery.ops.solvers import solve as reference_solve
from gradsurgery.ops.solvers.simplex import project_simplex

OPS = torch.ops.gradsurgery
CROSS = sorted(name for name, spec in gs.methods().items() if spec.family == "cross")
ORACLES: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {"sdmgrad": SDMGradOracle, "modo": MoDoOracle}
# Steps so short that roundings do not grow; the default ones of SDMGrad may amplify them without bound.
CALM: dict[str, dict[str, Any]] = {"sdmgrad": {"lr": 0.3, "n_iter": 30}, "modo": {}}


def crossed(tasks: int, numel: int = 40, seed: int = 0, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """J1 and J2 [T, N]: two noisy views of the same gradients, of about unit length."""
    generator = torch.Generator().manual_seed(seed)
    common, one, other = (torch.randn(tasks, numel, generator=generator, dtype=torch.float64) for _ in range(3))
    return ((common + one) / numel**0.5).to(device), ((common + other) / numel**0.5).to(device)


def test_every_cross_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(CROSS)


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 32])
def test_projection_onto_the_simplex(tasks: int) -> None:
    generator = torch.Generator().manual_seed(tasks)
    for scale in (1e-6, 0.1, 1.0, 1e3, 1e8):
        for _ in range(20):
            v = torch.randn(tasks, generator=generator, dtype=torch.float64) * scale
            if scale == 1.0:
                v = v.round()  # ties
            for w in (project_simplex(v), project(v)):
                assert bool((w >= 0).all())
            w = project_simplex(v)
            assert abs(float(w.sum()) - 1) <= 1e-15 * tasks
            # The condition for the nearest point: v - w is the same wherever w > 0, and no larger elsewhere.
            gap = v - w
            top = gap[w > 0]
            tolerance = 1e-15 * max(scale, 1.0)
            assert float(top.max() - top.min()) <= 8 * tolerance
            assert bool((gap <= top.max() + 8 * tolerance).all())
            torch.testing.assert_close(w, project(v), rtol=0, atol=1e-14 * max(scale, 1.0))


@pytest.mark.parametrize("method", CROSS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 33])
def test_a_sequence_is_the_papers(method: str, tasks: int, device: torch.device) -> None:
    oracle, surgery = ORACLES[method](**CALM[method]), gs.GradientAggregator(method, **CALM[method])
    for seed in range(5):
        one, other = crossed(tasks, seed=seed, device=device)
        expected = oracle((one @ other.T).cpu()).to(device)
        out = surgery.aggregate(one, against=other)
        assert surgery.weights is not None
        torch.testing.assert_close(surgery.weights, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out, expected @ one, rtol=1e-9, atol=1e-9)
        assert bool((surgery.weights >= 0).all())
        torch.testing.assert_close(surgery.weights.sum(), torch.ones_like(expected).mean())
        torch.testing.assert_close(surgery.statistics().gram, (one @ one.T).cpu())


@pytest.mark.parametrize("method", CROSS)
@pytest.mark.parametrize("tasks", [*range(1, 10), 16, 33])
def test_compiled_and_reference_agree(method: str, tasks: int, device: torch.device) -> None:
    options = {"sdmgrad": [0.3, 0.5, 20.0, 0.3], "modo": [0.1, 0.1]}[method]
    one, other = crossed(tasks, seed=tasks, device=device)
    A = torch.stack([one @ other.T, other @ one.T])
    given = torch.ones(tasks, dtype=torch.float64, device=device)
    if tasks > 2:
        given[1] = 0
    for state in (None, torch.full((2, tasks), 1.0 / tasks, dtype=torch.float64, device=device)):
        for mask in (None, given):
            states = [None if state is None else state.clone() for _ in range(2)]
            w, report = OPS.solve(A, method, options, mask, states[0])
            plain, plain_report = reference_solve(A, method, options, mask, states[1])
            torch.testing.assert_close(w, plain, rtol=1e-10, atol=1e-10)
            assert torch.equal(report, plain_report)
            if states[0] is not None:
                torch.testing.assert_close(states[0], states[1], rtol=1e-10, atol=1e-10)
            if mask is not None and tasks > 2:
                assert not w[:, 1].any()
                if states[0] is not None:
                    assert bool((states[0][:, 1] == 1.0 / tasks).all())


@pytest.mark.parametrize("solve", [OPS.solve, reference_solve], ids=["operator", "reference"])
@pytest.mark.parametrize("method", CROSS)
def test_an_iteration_that_leaves_the_numbers_says_so(method: str, solve: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Weights of zero would pass for an answer, and be remembered."""
    for call in overflowing(method):
        assert call.state is not None
        state = call.state.clone()
        w, report = solve(call.gram, call.solver, call.options, None, state)
        assert w.isnan().all()
        assert report[0] == 0
        torch.testing.assert_close(state, call.state, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("solve", [OPS.solve, reference_solve], ids=["operator", "reference"])
@pytest.mark.parametrize("method", CROSS)
def test_a_step_begins_on_the_simplex(method: str, solve: Callable[..., tuple[Tensor, Tensor]]) -> None:
    call = unbalanced(method)
    assert call.state is not None
    state, start = call.state.clone(), project(call.state)
    w, _ = solve(call.gram, call.solver, call.options, None, state)
    if method == "modo":
        gamma, rho = OPTIONS[method]
        expected = project(start - gamma * (call.gram @ start + rho * start))
    else:
        other = start.clone()
        expected, _ = solve(call.gram, call.solver, call.options, None, other)
        torch.testing.assert_close(state, other, rtol=1e-12, atol=1e-12)
        # Without any step, what was recalled is the answer's part of w.
        lam = OPTIONS[method][3]
        still, _ = solve(torch.zeros_like(call.gram), call.solver, call.options, None, call.state.clone())
        torch.testing.assert_close(still, (start + lam / 3) / (1 + lam))
    torch.testing.assert_close(w, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", CROSS)
def test_a_task_that_appears_later(method: str, device: torch.device) -> None:
    one, other = crossed(3, 20, device=device)
    surgery = gs.GradientAggregator(method, tasks=3, **CALM[method])
    for _ in range(4):
        surgery.aggregate([one[0], None, one[2]], against=[other[0], None, other[2]])
    remembered = dict(surgery.named_buffers())[f"{method}_weights"].clone()
    assert float(remembered.sum()) > 1.3
    surgery.aggregate(one, against=other)
    fresh = gs.GradientAggregator(method, tasks=3, **CALM[method])
    fresh.aggregate(one, against=other)
    dict(fresh.named_buffers())[f"{method}_weights"].copy_(project(remembered.cpu()))
    fresh.aggregate(one, against=other)
    torch.testing.assert_close(surgery.weights, fresh.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", CROSS)
def test_the_default_step_on_the_compiled_solver(method: str) -> None:
    """Even where the iteration is chaotic its answer is on the simplex, finite, and says what it did."""
    for tasks in (2, 5, 32):
        for seed in range(50):
            one, other = crossed(tasks, seed=seed)
            scales = 10.0 ** torch.empty(tasks, 1, dtype=torch.float64).uniform_(-8, 8)
            options = {"sdmgrad": [10.0, 0.5, 20.0, 0.3], "modo": [0.1, 0.1]}[method]
            w, report = OPS.solve((scales * one) @ (scales * other).T, method, options)
            assert bool((w >= 0).all())
            assert abs(float(w.sum()) - 1) <= 1e-12
            assert report[3] == (20 if method == "sdmgrad" else 1)


@pytest.mark.parametrize("method", CROSS)
def test_the_weights_of_a_cross_gram_matrix(method: str, device: torch.device) -> None:
    one, other = crossed(4, device=device)
    expected = ORACLES[method](**CALM[method])((one @ other.T).cpu()).to(device)
    torch.testing.assert_close(gs.weights(one @ other.T, method, **CALM[method]), expected)
    torch.testing.assert_close(gs.aggregate(one, method, against=other, **CALM[method]), expected @ one)
    alone = gs.aggregate(one, method, **CALM[method])
    torch.testing.assert_close(alone, gs.aggregate(one, method, against=one, **CALM[method]))


@pytest.mark.parametrize("method", CROSS)
def test_every_form_gives_one_answer(method: str, device: torch.device) -> None:
    one, other = (batch.float() for batch in crossed(3, 60, device=device))
    expected = gs.aggregate(one, method, against=other, **CALM[method])
    for form in (list, lambda G: [[row[:9], row[9:]] for row in G]):
        for against in (other, form(other)):
            if isinstance(against, Tensor) and isinstance(form(one)[0], list):
                continue
            out = gs.aggregate(form(one), method, against=against, **CALM[method])
            joined = torch.cat(out) if isinstance(out, list) else out
            torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-6)
    out = torch.empty(60, device=device)
    assert gs.aggregate(one, method, against=other, out=out, **CALM[method]) is out
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("method", CROSS)
def test_absent_tasks_and_unreached_positions(method: str, device: torch.device) -> None:
    one, other = crossed(3, 20, device=device)
    surgery, alone = (gs.GradientAggregator(method, tasks=tasks, **CALM[method]) for tasks in (3, 2))
    out = surgery.aggregate([[one[0], None], None, [one[2], None]], against=[[other[0], other[1]], None, [other[2], None]])
    expected = alone.aggregate([one[0], one[2]], against=[other[0], other[2]])
    assert isinstance(out, list)
    assert out[1] is None
    torch.testing.assert_close(out[0], expected)
    assert dict(surgery.named_buffers())[f"{method}_weights"][1] == 1 / 3


@pytest.mark.parametrize("method", CROSS)
def test_groups_have_weights_of_their_own(method: str, device: torch.device) -> None:
    one, other = crossed(3, 20, device=device)
    grads, against = (TaskGradients.of([[row[:8], row[8:15], row[15:]] for row in batch]) for batch in (one, other))
    built = build(method, **CALM[method])
    state = built.task_state(grads, groups=2)
    alone = [gs.GradientAggregator(method, **CALM[method]) for _ in range(2)]
    for _ in range(2):
        out = grads.empty()
        solution = built.surgery_(out, grads, Step(state, against=against), groups=(0, 1, 0))
        assert solution.gram.shape == (2, 3, 3)
        first = alone[0].aggregate([[row[:8], row[15:]] for row in one], against=[[row[:8], row[15:]] for row in other])
        second = alone[1].aggregate(one[:, 8:15], against=other[:, 8:15])
        torch.testing.assert_close(out, [first[0], second, first[1]])
        torch.testing.assert_close(solution.weights, torch.stack([surgery.weights for surgery in alone]))  # type: ignore[arg-type]


def test_the_gradients_size_does_not_matter_to_sdmgrad() -> None:
    one, other = crossed(4)
    for factor in (2.0**-60, 2.0**60):
        plain, scaled = gs.GradientAggregator("sdmgrad"), gs.GradientAggregator("sdmgrad")
        for _ in range(3):
            a, b = plain.aggregate(one, against=other), scaled.aggregate(factor * one, against=factor * other)
            assert torch.equal(torch.as_tensor(b) / factor, a)  # type: ignore[arg-type]


def test_batches_that_agree_on_no_task() -> None:
    one, _ = crossed(3)
    surgery = gs.GradientAggregator("sdmgrad")
    surgery.aggregate(one, against=-one)
    assert surgery.statistics().status is not None
    assert not surgery.statistics().status.converged  # type: ignore[union-attr]
    assert surgery.sdmgrad_weights.tolist() == [1 / 3] * 3


@pytest.mark.parametrize("method", CROSS)
@pytest.mark.parametrize("second", [False, True])
def test_a_bad_number_in_either_batch_leaves_the_memory_alone(method: str, second: bool, device: torch.device) -> None:
    one, other = crossed(3, device=device)
    surgery = gs.GradientAggregator(method)
    surgery.aggregate(one, against=other)
    before = {name: tensor.clone() for name, tensor in surgery.named_buffers()}
    bad = (other if second else one).clone()
    bad[1, 3] = torch.inf
    out = surgery.aggregate(one, against=bad) if second else surgery.aggregate(bad, against=other)
    assert torch.as_tensor(out).isnan().all()
    assert all(torch.equal(before[name], tensor) for name, tensor in surgery.named_buffers())


@pytest.mark.parametrize("method", CROSS)
def test_a_second_batch_that_does_not_fit(method: str) -> None:
    G = torch.randn(2, 6)
    for against, message in (
        (torch.randn(3, 6), r"against: expected 2 tasks like grads, found 3"),
        (torch.randn(2, 5), r"against\[0\]: expected shape \[6\] like grads, found \[5\]"),
        ([None, None], r"against: expected a gradient of at least one task"),
        ([torch.ones(6), torch.ones(5)], r"against\[1\]: expected shape \[6\]"),
    ):
        surgery = gs.GradientAggregator(method)
        for aggregate in (partial(gs.aggregate, method=method), surgery.aggregate):
            with pytest.raises(ValueError, match=message):
                aggregate(G, against=against)
    with pytest.raises(TypeError, match=r"against: expected dtype float64"):
        gs.aggregate(G, method, against=torch.ones(2, 6, dtype=torch.int64))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sdmgrad", {"lr": 0.0}, r"lr: expected a finite number > 0, found 0.0"),
        ("sdmgrad", {"momentum": 1.0}, r"momentum: expected a finite number >= 0 and < 1, found 1.0"),
        ("sdmgrad", {"n_iter": 0}, r"n_iter: expected an integer >= 1 and <= 10000, found 0"),
        ("sdmgrad", {"lam": -0.1}, r"lam: expected a finite number >= 0, found -0.1"),
        ("modo", {"gamma": 0.0}, r"gamma: expected a finite number > 0, found 0.0"),
        ("modo", {"rho": -1.0}, r"rho: expected a finite number >= 0, found -1.0"),
    ],
)
def test_options_out_of_bounds(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.GradientAggregator(method, **options)


@pytest.mark.parametrize("method", CROSS)
def test_compiled(method: str, device: torch.device) -> None:
    one, other = crossed(3, device=device)
    torch.compiler.reset()
    run = torch.compile(lambda a, b: gs.aggregate(a, method, against=b), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(one, other), gs.aggregate(one, method, against=other))
