"""GradVac: PCGrad at first, then towards the remembered cosines; its memory."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from oracles.gradvac import gradvac
from torch import Tensor

import gradsurgery as gs
from gradsurgery import ops

BETAS = (0.0, 0.01, 0.5, 1.0)


def gradients(tasks: int, seed: int, numel: int = 40) -> Tensor:
    """With a part that half of the tasks want the other way. [T, N]"""
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(tasks)[:tasks, None]
    shared = torch.randn(1, numel, generator=generator, dtype=torch.float64)
    return torch.randn(tasks, numel, generator=generator, dtype=torch.float64) + signs * shared


def step(surgery: gs.GradientAggregator, G: Tensor, present: list[int] | None = None) -> Tensor:
    """The combined gradient of one step of an aggregator. [N]"""
    z = torch.zeros(G.shape[1], dtype=torch.float64, requires_grad=True)
    chosen = range(len(G)) if present is None else present
    names = [str(t) for t in chosen]
    torch.stack([(view * G[t]).sum() for view, t in zip(surgery.split(z, names), chosen, strict=True)]).sum().backward()
    assert z.grad is not None
    return z.grad


@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 33])
def test_the_first_call_is_pcgrad_to_the_bit(tasks: int) -> None:
    K = torch.stack([gs.gram(gradients(tasks, seed)) for seed in range(4)])
    order = torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    for gram in K:
        assert torch.equal(gs.weights(gram, "gradvac", order="ascending"), gs.weights(gram, "pcgrad", order="ascending"))
        assert torch.equal(gs.weights(gram, "gradvac", order=order), gs.weights(gram, "pcgrad", order=order))
        assert torch.equal(gs.weights(gram, "gradvac", seed=5), gs.weights(gram, "pcgrad", seed=5))
    surgery, plain = (gs.GradientAggregator(name, tasks=tasks, seed=7) for name in ("gradvac", "pcgrad"))
    assert torch.equal(step(surgery, gradients(tasks, 0)), step(plain, gradients(tasks, 0)))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_steps_are_the_algorithm_on_full_vectors(tasks: int, beta: float) -> None:
    order = torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    surgery = gs.GradientAggregator("gradvac", tasks=tasks, beta=beta, order=order)
    targets = torch.zeros(tasks, tasks, dtype=torch.float64)
    for seed in range(6):
        G = gradients(tasks, seed)
        expected = gradvac(G, order, targets, beta)
        scale = float(G.norm(dim=1).sum())
        assert float((step(surgery, G) - expected).abs().max()) <= 1e-11 * scale
        torch.testing.assert_close(surgery.similarity, targets, rtol=1e-11, atol=1e-12)


def test_the_cosine_becomes_the_target() -> None:
    G = gradients(2, 0)
    K = G @ G.T
    targets = torch.tensor([[0.0, 0.7], [0.3, 0.0]], dtype=torch.float64)
    state = targets.clone()
    w, _ = ops.solve(K, "gradvac", [0.25], None, state, None, None)
    cosine = float(K[0, 1] / (K[0, 0] * K[1, 1]).sqrt())
    each = [torch.stack([torch.ones(()), w[1] - 1]).double() @ G, torch.stack([w[0] - 1, torch.ones(())]).double() @ G]
    for i, j in ((0, 1), (1, 0)):
        assert float(each[i] @ G[j] / (each[i].norm() * G[j].norm())) == pytest.approx(float(targets[i, j]), abs=1e-12)
        assert float(state[i, j]) == pytest.approx(0.75 * float(targets[i, j]) + 0.25 * cosine, abs=1e-14)
    assert state.diagonal().tolist() == [0.0, 0.0]


def test_absent_and_zero_tasks_leave_their_averages_alone() -> None:
    surgery = gs.GradientAggregator("gradvac", tasks=3, beta=0.5, order="ascending")
    G = gradients(3, 0)
    step(surgery, G)
    before = surgery.similarity.clone()
    assert bool((before[~torch.eye(3, dtype=torch.bool)] != 0).all())
    two = copy.deepcopy(surgery)
    for other, present in ((surgery, [0, 2]), (two, None)):
        absent = gradients(3, 1)
        absent[1] = 0.0
        step(other, absent, present)
        assert torch.equal(other.similarity[1], before[1])
        assert torch.equal(other.similarity[:, 1], before[:, 1])
        assert float(other.similarity[0, 2]) != float(before[0, 2])
    assert torch.equal(surgery.similarity, two.similarity)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 2.0**-300, 2.0**300])
def test_free_of_scale(scale: float) -> None:
    """Lengths of all gradients, or of one, change neither the averages nor what they do."""
    rows = torch.tensor([1.0, scale, 1.0, 1 / scale], dtype=torch.float64)[:, None]
    surgeries = [gs.GradientAggregator("gradvac", tasks=4, beta=0.3, order="ascending") for _ in range(2)]
    for seed in range(4):
        G = gradients(4, seed)
        plain, scaled = step(surgeries[0], G), step(surgeries[1], scale * G)
        torch.testing.assert_close(scaled / scale, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(surgeries[1].similarity, surgeries[0].similarity, rtol=1e-9, atol=1e-12)
    if 1e-7 < scale < 1e7:
        one = gs.GradientAggregator("gradvac", tasks=4, beta=0.3, order="ascending")
        for seed in range(4):
            step(one, rows * gradients(4, seed))
        torch.testing.assert_close(one.similarity, surgeries[0].similarity, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_resumes_to_the_same_bits(order: str) -> None:
    def fresh() -> gs.GradientAggregator:
        return gs.GradientAggregator("gradvac", tasks=5, beta=0.2, order=order, seed=3)

    whole = fresh()
    outs = [step(whole, gradients(5, seed)) for seed in range(6)]
    first = fresh()
    for seed in range(3):
        step(first, gradients(5, seed))
    saved = copy.deepcopy(first.state_dict())
    for used in (False, True):
        resumed = fresh()
        if used:
            step(resumed, gradients(5, 9))
        resumed.load_state_dict(saved)
        for seed in range(3, 6):
            assert torch.equal(step(resumed, gradients(5, seed)), outs[seed])
        assert torch.equal(resumed.similarity, whole.similarity)


def test_a_broken_step_changes_no_memory() -> None:
    surgery = gs.GradientAggregator("gradvac", tasks=3, seed=1)
    step(surgery, gradients(3, 0))
    before = (surgery.similarity.clone(), surgery.key.clone())
    broken = gradients(3, 1)
    broken[1, 3] = torch.inf
    assert not bool(step(surgery, broken).isfinite().any())
    assert torch.equal(surgery.similarity, before[0])
    assert torch.equal(surgery.key, before[1])


def test_tasks_that_come_later() -> None:
    surgery = gs.GradientAggregator("gradvac", beta=0.5, order="ascending")
    step(surgery, gradients(2, 0))
    before = surgery.similarity.clone()
    G = gradients(3, 1)
    z = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    torch.stack([(view * g).sum() for view, g in zip(surgery.split(z, ["0", "1", "late"]), G, strict=True)]).sum().backward()
    targets = torch.zeros(3, 3, dtype=torch.float64)
    targets[:2, :2] = before
    torch.testing.assert_close(z.grad, gradvac(G, "ascending", targets, 0.5))
    torch.testing.assert_close(surgery.similarity, targets)


@pytest.mark.parametrize("target", [1.0, -1.0])
def test_targets_at_the_ends_stay_finite(target: float) -> None:
    """Equal or opposite gradients drive the averages to 1 or -1; beyond rounding there is nothing to reach."""
    G = gradients(2, 0)
    state = torch.full((2, 2), target, dtype=torch.float64)
    w, _ = ops.solve(G @ G.T, "gradvac", [0.5], None, state, None, None)
    assert bool(w.isfinite().all())
    assert bool((w >= 1).all())
    parallel = torch.stack([G[0], 3 * G[0], -G[0]])
    memory = torch.zeros(3, 3, dtype=torch.float64)
    for _, beta in itertools.product(range(4), (1.0, 0.5)):
        w, _ = ops.solve(parallel @ parallel.T, "gradvac", [beta], None, memory, None, None)
        assert bool(w.isfinite().all())
        assert float(memory.abs().max()) <= 1.0


def test_an_order_outside_gives_nan_and_changes_no_memory() -> None:
    K = gs.gram(gradients(3, 0))
    order, state = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 3]]), torch.full((3, 3), 0.2, dtype=torch.float64)
    w, status = ops.solve(K, "gradvac", [0.5], None, state, order, None)
    assert bool(w.isnan().all())
    assert float(status[0]) == 0
    assert torch.equal(state, torch.full_like(state, 0.2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -0.1}, ValueError, r"beta: expected a finite number >= 0 and <= 1, found -0.1"),
        ({"beta": 1.5}, ValueError, r"beta: expected a finite number >= 0 and <= 1, found 1.5"),
        ({"beta": float("nan")}, ValueError, r"beta: expected a finite number >= 0 and <= 1, found nan"),
        ({"order": "descending"}, ValueError, r"order: expected 'random', 'ascending' or .*, found 'descending'"),
        ({"order": torch.tensor([[0, 0], [1, 0]])}, ValueError, r"order: expected every row to be a permutation"),
        ({"seed": 0.5}, TypeError, r"seed: expected an integer or None, found float"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.methods()["gradvac"].build(**options)
