"""Statistics against their definitions on full vectors."""

from __future__ import annotations

import math

import pytest
import torch

import gradsurgery as gs
from gradsurgery.methods import build
from gradsurgery.monitor import Statistics


def step(rows: torch.Tensor, **options: object) -> tuple[gs.GradientAggregator, torch.Tensor]:
    """One step of surgery on given gradients: the rows [T, N] reach the representation as they are."""
    surgery = gs.GradientAggregator("pcgrad", order="ascending", tasks=[f"t{i}" for i in range(len(rows))], **options)
    x = torch.zeros(rows.shape[1], requires_grad=True)
    views = surgery.split(x * 1)
    torch.stack([(z * row).sum() for z, row in zip(views, rows, strict=True)]).sum().backward()
    assert x.grad is not None
    return surgery, x.grad


def test_definitions() -> None:
    rows = torch.tensor([[2.0, -3.0, 0.0], [4.0, 3.0, 1.0], [-3.0, 0.0, 1.0]])
    surgery, out = step(rows)
    s, G = surgery.statistics(), rows.double()
    torch.testing.assert_close(s.gram, G @ G.T)
    torch.testing.assert_close(s.norms, G.norm(dim=1))
    torch.testing.assert_close(s.cosines, torch.nn.functional.cosine_similarity(G[:, None], G[None], dim=-1))
    assert s.conflicts == sum(float(G[i] @ G[j]) < 0 for i in range(3) for j in range(i))
    assert s.pairs == 3
    torch.testing.assert_close(s.weights @ G, out.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s.alignment, G @ out.double(), rtol=1e-5, atol=1e-5)
    assert s.norm == pytest.approx(float(out.norm()), rel=1e-6)
    assert not s.nonfinite
    scalars = s.scalars()
    assert scalars["cosine/t0-t2"] == pytest.approx(float(G[0] @ G[2] / G[0].norm() / G[2].norm()))
    assert scalars["norm/t1"] == pytest.approx(float(G[1].norm()))
    assert scalars["conflict_rate"] == pytest.approx(s.conflicts / 3)
    assert all(isinstance(v, float) for v in scalars.values())


def test_more_definitions() -> None:
    rows = torch.tensor([[2.0, -3.0, 0.0], [4.0, 3.0, 1.0], [-3.0, 0.0, 1.0]])
    surgery, out = step(rows)
    s, G, result = surgery.statistics(), rows.double(), out.double()
    lengths = G.norm(dim=1)
    for i in range(3):
        for j in range(3):
            a, b = float(lengths[i]), float(lengths[j])
            assert float(s.similarity[i, j]) == pytest.approx(2 * a * b / (a * a + b * b))
    assert s.condition == pytest.approx(float(torch.linalg.cond(G)))
    torch.testing.assert_close(s.task_cosines, torch.cosine_similarity(G, result[None]), rtol=1e-5, atol=1e-6)
    assert s.mean_cosine == pytest.approx(float(torch.cosine_similarity(result, G.mean(0), dim=0)), abs=1e-6)


def test_condition_of_dependent_absent_and_broken_gradients() -> None:
    surgery, _ = step(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]))
    assert surgery.statistics().condition == math.inf
    surgery, _ = step(torch.tensor([[1.0, 2.0], [float("nan"), 4.0]]))
    assert math.isnan(surgery.statistics().condition)
    surgery = gs.GradientAggregator("pcgrad", tasks=["a", "b", "c"])
    x = torch.zeros(2, requires_grad=True)
    one, other = surgery.split(x * 1, ["a", "c"])
    (one[0] * 3 + other[1] * 4).backward()
    assert surgery.statistics().condition == pytest.approx(4 / 3)  # of the two that are there


def test_surgery_without_conflict_leaves_the_mean_direction() -> None:
    surgery, _ = step(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert surgery.statistics().mean_cosine == pytest.approx(1.0)


def test_zero_and_infinite_gradients() -> None:
    surgery, _ = step(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert math.isnan(surgery.statistics().cosines[0, 1])
    assert surgery.statistics().conflicts == 0
    surgery, out = step(torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]))
    assert surgery.statistics().nonfinite
    assert out.isnan().all()


OPPOSED = torch.tensor([[1.0, 2.0, 0.0], [-2.0, -4.0, 0.0], [0.0, 0.0, 1.0]])
DEPENDENT = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("method", ["imtlg", "config", "alignedmtl"])
def test_status_of_a_solver(method: str) -> None:
    """Rank and stationarity come through capture, groups of one and the transfer to the host, and into the scalars."""
    for rows, rank, stationary in ((torch.eye(3), 3, False), (DEPENDENT, 2, False), (OPPOSED, 2, True)):
        surgery = gs.GradientAggregator(method)
        x = torch.zeros(3, requires_grad=True)
        views = surgery.split(x * 1, 3)
        torch.stack([(z * row).sum() for z, row in zip(views, rows, strict=True)]).sum().backward()
        s = surgery.statistics()
        assert s.status is not None
        assert (s.status.converged, s.status.stationary, s.status.rank) == (True, stationary, rank)
        assert 1 <= s.status.iterations <= 10
        assert (s.scalars()["converged"], s.scalars()["stationary"]) == (1.0, float(stationary))
        torch.testing.assert_close(s.weights @ rows.double(), x.grad.double())  # type: ignore[union-attr]


def test_status_of_a_broken_step_and_of_an_absent_task() -> None:
    surgery = gs.GradientAggregator("imtlg", tasks=["a", "b", "c"])
    for rows, converged, stationary, rank in (
        ([torch.ones(2), torch.tensor([float("nan"), 0.0]), torch.ones(2)], False, None, -1),
        ([torch.tensor([1.0, 0.0]), None, torch.tensor([0.0, 2.0])], True, False, 2),
    ):
        x = torch.zeros(2, requires_grad=True)
        views = surgery.split(x * 1)
        torch.stack([(z * row).sum() for z, row in zip(views, rows, strict=True) if row is not None]).sum().backward()
        status = surgery.statistics().status
        assert status is not None
        assert (status.converged, status.stationary, status.rank) == (converged, stationary, rank)
        assert surgery.statistics().nonfinite is not converged


@pytest.mark.parametrize("method", ["sum", "mean", "pcgrad", "constant"])
def test_no_status_without_a_solver(method: str) -> None:
    surgery = gs.GradientAggregator(method)
    x = torch.zeros(3, requires_grad=True)
    a, b = surgery.split(x * 1, 2)
    (a.sum() - b.sum()).backward()
    assert surgery.statistics().status is None
    assert not {"converged", "stationary"} & set(surgery.statistics().scalars())


def test_status_of_groups_is_the_worst() -> None:
    grams = torch.stack([rows.double() @ rows.double().T for rows in (torch.eye(3), OPPOSED, DEPENDENT)])
    solution = build("config").solve(grams)
    s = Statistics(0, ("a", "b", "c"), (True, True, True), solution.gram, solution.weights, solution.status, ("x", "y", "z"))
    assert s.status is not None
    assert (s.status.converged, s.status.stationary, s.status.rank) == (True, True, 2)
    grams[2, 0, 0] = torch.nan
    solution = build("config").solve(grams)
    s = Statistics(0, ("a", "b", "c"), (True, True, True), solution.gram, solution.weights, solution.status, ("x", "y", "z"))
    assert s.status is not None
    assert (s.status.converged, s.status.stationary, s.status.rank) == (False, True, -1)


@pytest.mark.parametrize("method", ["krum", "gradvac", "random", "modo", "sdmgrad", "imtlg", "config", "alignedmtl"])
def test_stationary_is_not_said_where_nobody_looked(method: str) -> None:
    """Solvers that never look, and spectral ones where several combinations of the gradients vanish."""
    G = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [3.0, 6.0]])
    surgery = gs.GradientAggregator(method)
    surgery.aggregate(G)
    status = surgery.statistics().status
    assert status is not None
    assert status.stationary is None
    assert "converged" in surgery.statistics().scalars()
    assert "stationary" not in surgery.statistics().scalars()


def test_stationarity_of_groups() -> None:
    """True where a group is stationary, else None where some group was not looked at."""
    told = {
        "yes": torch.tensor([1.0, 1.0, 2.0, 1.0]),
        "no": torch.tensor([1.0, 0.0, 2.0, 1.0]),
        "unknown": torch.tensor([1.0, -1.0, -1.0, 1.0]),
    }
    for names, expected in (
        (("yes", "unknown"), True),
        (("no", "unknown"), None),
        (("no", "no"), False),
    ):
        said = torch.stack([told[name] for name in names]).double()
        s = Statistics(0, ("a",), (True,), torch.ones(2, 1, 1), torch.ones(2, 1), said, names)
        assert s.status is not None
        assert s.status.stationary is expected


@pytest.mark.parametrize("method", ["moco", "dbmtl"])
def test_of_a_method_that_combines_averages(method: str) -> None:
    """K is of the gradients as they arrive, and the norm that of the result; their products with it are not known."""
    surgery = gs.GradientAggregator(method)
    for seed in range(3):
        G = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        heard: list[torch.Tensor] = []
        with surgery.register_step_hook(lambda _, K, heard=heard: heard.append(K)):  # type: ignore[misc]
            out = surgery.aggregate(G, [torch.tensor(x) for x in (1.0, 2.0, 0.5)])
        s = surgery.statistics()
        assert isinstance(out, torch.Tensor)
        torch.testing.assert_close(s.gram, G @ G.T)
        torch.testing.assert_close(heard[0], G @ G.T)
        torch.testing.assert_close(s.norms, G.norm(dim=1))
        assert s.norm == pytest.approx(float(out.norm()), rel=1e-6)
        with pytest.raises(RuntimeError, match="combines averages of the gradients"):
            _ = s.alignment


def test_history_is_bounded_and_counts_steps() -> None:
    surgery = gs.GradientAggregator("sum", history=3)
    x = torch.ones(2, requires_grad=True)
    for _ in range(5):
        a, b = surgery.split(x * 1, 2)
        (a.sum() + b.sum()).backward()
    assert [s.step for s in surgery.history] == [2, 3, 4]
    assert surgery.statistics() is surgery.history[-1]


def test_step_hook() -> None:
    seen: list[tuple[int, float]] = []
    surgery = gs.GradientAggregator("sum")
    handle = surgery.register_step_hook(lambda s, K: seen.append((s.step, float(K[0, 0]))))
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        (a,) = surgery.split(x * 1, 1)
        a.sum().backward()
    handle.remove()
    (a,) = surgery.split(x * 1, 1)
    a.sum().backward()
    assert seen == [(0, 2.0), (1, 2.0)]
