"""IMTL-G, ConFIG and Aligned-MTL: certificates over hard families of K, identities, and what is falsely believed of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from oracles import spectral
from oracles.spectral import alignedmtl_residual, config_residual, imtlg_residual
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Solution, build

FEW = 200  # of every number of tasks


def family(name: str, tasks: int, count: int) -> Tensor:
    """Gradients [count, T, N] in float64."""
    generator = torch.Generator().manual_seed(tasks)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "benign":
        return normal(count, tasks, tasks + 5)
    if name == "scaled":
        exponents = torch.rand(count, tasks, 1, generator=generator, dtype=torch.float64) * 16 - 8
        return normal(count, tasks, tasks + 5) * 10**exponents
    if name == "dependent":  # fewer coordinates than tasks
        return normal(count, tasks, (tasks + 1) // 2)
    if name == "duplicated":
        return normal(count, tasks, tasks)[:, torch.arange(tasks) // 2]
    if name == "zeros":
        return normal(count, tasks, tasks + 5) * (torch.arange(tasks) % 3 > 0)[:, None]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(tasks)[:tasks, None]
    return signs * normal(count, 1, 2 * tasks + 3) + float(name.removeprefix("opposed ")) * normal(count, tasks, 2 * tasks + 3)


FAMILIES = ("benign", "scaled", "dependent", "duplicated", "zeros", *(f"opposed 1e-{k}" for k in range(1, 7)))


def grams(name: str, tasks: int, count: int) -> Tensor:
    """K [count, T, T], symmetric."""
    G = family(name, tasks, count)
    K = G @ G.mT
    return K.triu() + K.triu(1).mT


def status(solution: Solution) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(converged, stationary, rank, sweeps) [G] each."""
    assert solution.status is not None
    converged, stationary, rank, sweeps = solution.status.unbind(-1)
    return converged, stationary, rank, sweeps


def certify(name: str, K: Tensor, residual: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Residuals of at most 1e-9, or w = 0 where stationarity or a sum of zero is what there is to say."""
    solution = build(name).solve(K)
    converged, stationary, rank, sweeps = status(solution)
    assert bool((converged == 1).all())
    assert float(sweeps.max()) <= 20
    w = solution.weights
    none = (w == 0).all(1)
    assert bool((stationary[none] == 1).all())
    assert float(none.double().mean()) <= 0.5
    assert float(residual(K[~none], w[~none], rank[~none]).max()) <= 1e-9


TASKS = (2, 3, 4, 5, 8, 13, 16, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_certificates(name: str) -> None:
    for tasks in TASKS if name != "zeros" else TASKS[1:]:
        K = grams(name, tasks, FEW if tasks < 32 else FEW // 4)
        certify("imtlg", K, imtlg_residual)
        certify("config", K, config_residual)


def balance(K: Tensor, scale_mode: str) -> tuple[Tensor, Solution]:
    """B [G, T, T], column by column, and what the solver said."""
    T = K.shape[-1]
    columns = [build("alignedmtl", scale_mode=scale_mode, pref=torch.eye(T)[i]).solve(K) for i in range(T)]
    return torch.stack([column.weights for column in columns], dim=-1), columns[0]


@pytest.mark.parametrize("scale_mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("name", FAMILIES)
def test_alignedmtl_makes_singular_values_equal(name: str, scale_mode: str) -> None:
    for tasks in (2, 3, 4, 8, 16) if name != "zeros" else (3, 4, 8):
        G = family(name, tasks, FEW // 4)
        K = grams(name, tasks, FEW // 4)
        B, solution = balance(K, scale_mode)
        converged, _, rank, sweeps = status(solution)
        assert bool((converged == 1).all())
        assert float(sweeps.max()) <= 20
        residual, s, terms = alignedmtl_residual(K, B, rank)
        assert float(residual.max()) <= 1e-9
        values = torch.linalg.svdvals(G)
        for x, term, value, r in zip(s, terms, values, rank.long(), strict=True):
            kept = value[:r]
            expected = {"min": kept.min(), "median": kept.median(), "rmse": kept.square().mean().sqrt()}[scale_mode] ** 2
            # K is rounded, by 1e-16 of its largest eigenvalue where the rows' lengths are alike
            rounding = 1e-14 * float(term) + (0.0 if name == "scaled" else 1e-14 * float(value[0] ** 2))
            assert abs(float(x - expected)) <= 1e-8 * float(expected) + rounding


def test_alignedmtl_is_accurate_where_lengths_differ() -> None:
    """With an eigenvalue 1e-11 of the largest: the gradients' lengths alone cost nothing. In 60 digits for comparison."""
    mpmath.mp.dps = 60
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        G = torch.randn(5, 7, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [1e-5], [3e-3], [2.0], [3e-4]])
        K = gs.gram(G)
        values, vectors = mpmath.eigsy(mpmath.matrix(K.tolist()))
        exact = [
            sum(mpmath.sqrt(values[0] / values[k]) * vectors[i, k] * sum(vectors[:, k]) / 5 for k in range(5)) for i in range(5)
        ]
        w = gs.weights(K, "alignedmtl")
        torch.testing.assert_close(w, torch.tensor([float(x) for x in exact], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["imtlg", "config"])
def test_the_lengths_of_gradients_do_not_matter(name: str) -> None:
    """w_t |g_t| is the same to rounding when rows are scaled by 1e-8..1e8, dependent or not (ConFIG's: up to one factor)."""
    for kind in ("benign", "dependent", "opposed 1e-3"):
        K = grams(kind, 6, 50)
        c = 10 ** (16 * torch.rand(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 8)
        lengths = []
        for gram, factor in ((K, torch.ones_like(c)), (K * c[:, :, None] * c[:, None], c)):
            v = gs.weights(gram, name) * factor
            lengths.append(v / v.norm(dim=1, keepdim=True))
        alike = (lengths[0] * lengths[1]).sum(1).abs()
        assert bool((alike >= 1 - 1e-9).all())


# --- identities -------------------------------------------------------------------------------------------------------------------


def test_of_two_tasks_imtlg_and_config_are_the_bisector() -> None:
    for G in family("benign", 2, 50):
        bisector = G[0] / G[0].norm() + G[1] / G[1].norm()
        for name in ("imtlg", "config"):
            out = gs.aggregate(G, name)
            assert isinstance(out, Tensor)
            torch.testing.assert_close(out / out.norm(), bisector / bisector.norm(), rtol=1e-10, atol=1e-12)


def test_config_has_the_length_of_its_projections_and_equal_cosines() -> None:
    for G in family("benign", 4, 50):
        out = gs.aggregate(G, "config")
        assert isinstance(out, Tensor)
        cosines = (G @ out) / (G.norm(dim=1) * out.norm())
        torch.testing.assert_close(cosines, cosines.mean().expand(4))
        torch.testing.assert_close(out.norm(), (G @ out).sum() / out.norm())


@pytest.mark.parametrize("length", ["projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric"])
@pytest.mark.parametrize("pref", [None, [1.0, 2.0, 0.5]])
def test_config_options(length: str, pref: list[float] | None) -> None:
    for scale in (1.0, 1e-100, 1e100):
        G = scale * family("benign", 3, 1)[0]
        expected = spectral.config(G, pref, length)
        for given in ("ones",) if pref is None else (pref, tuple(pref), torch.tensor(pref)):
            out = gs.aggregate(G, "config", length=length, pref=given)
            assert isinstance(out, Tensor)
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale_mode", ["min", "median", "rmse"])
def test_alignedmtl_options(scale_mode: str) -> None:
    for tasks in (2, 3, 4, 5):
        G = family("benign", tasks, 1)[0]
        pref = [0.5 + t for t in range(tasks)]
        cases = (("mean", None), ("sum", [1.0] * tasks), (pref, pref), (torch.tensor(pref), pref))
        for given, oracle in cases:
            out = gs.aggregate(G, "alignedmtl", scale_mode=scale_mode, pref=given)
            expected = spectral.alignedmtl(G, scale_mode, oracle)  # type: ignore[arg-type]
            torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


def test_absent_tasks_are_no_part_of_the_mean_and_zero_gradients_are() -> None:
    a, b, c = family("benign", 3, 1)[0]
    expected = gs.aggregate([a, b, c], "alignedmtl")
    torch.testing.assert_close(gs.aggregate([a, None, b, c], "alignedmtl"), expected)
    with_zero = gs.aggregate([a, torch.zeros_like(a), b, c], "alignedmtl")
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(with_zero, expected * 3 / 4)
    for name in ("imtlg", "config"):
        expected = gs.aggregate([a, b, c], name)
        torch.testing.assert_close(gs.aggregate([a, None, b, c], name), expected)
        torch.testing.assert_close(gs.aggregate([a, torch.zeros_like(a), b, c], name), expected)


@pytest.mark.parametrize("name", ["imtlg", "config", "alignedmtl"])
def test_no_gradient_at_all(name: str) -> None:
    solution = build(name).solve(torch.zeros(3, 3, dtype=torch.float64))
    assert solution.weights.tolist() == [0.0, 0.0, 0.0]
    assert solution.status is not None
    assert solution.status[:3].tolist() == [1.0, 0.0, 0.0]


# --- stationary points ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imtlg", "config", "alignedmtl"])
def test_stationarity_is_claimed_where_a_convex_combination_vanishes(name: str) -> None:
    mix = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for scales in ([1.0, 1.0, 1.0, 1.0], [1e-6, 1.0, 1e6, 1e3], [1e-100, 1e-100, 1e-100, 1e-100]):
        rows, scale = family("benign", 3, 1)[0], torch.tensor(scales, dtype=torch.float64)[:, None]
        opposing = torch.cat([rows, -(mix @ rows)[None]]) * scale
        agreeing = torch.cat([rows, (mix @ rows)[None]]) * scale
        for G, expected in ((opposing, 1.0), (agreeing, 0.0)):
            solution = build(name).solve(gs.gram(G))
            _, stationary, rank, _ = status(solution)
            if name == "alignedmtl" and float(rank) < 3:
                continue  # lengths so different that more than the dependent direction counts as zero: it does not say
            assert float(rank) == 3
            assert float(stationary) == expected


def test_opposite_gradients_give_nothing() -> None:
    """No direction has the same projection on both: the answer is zero, and no noise divided by noise."""
    for factor in (1.0, 1.37, 1e-5):
        g = family("benign", 2, 1)[0][0]
        K = gs.gram(torch.stack([g, -factor * g]))
        for name in ("imtlg", "config"):
            solution = build(name).solve(K)
            assert solution.weights.tolist() == [0.0, 0.0]
            assert status(solution)[1] == 1


# --- what is falsely believed -----------------------------------------------------------------------------------------------------


def test_imtlg_may_ascend_every_loss() -> None:
    G = torch.tensor([[-1.0, 0.0, 2.0], [-1.0, -1.0, 4.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    out = gs.aggregate(G, "imtlg")
    assert isinstance(out, Tensor)
    assert bool((G @ out < 0).all())
    torch.testing.assert_close(gs.weights(gs.gram(G), "imtlg").sum(), torch.ones((), dtype=torch.float64))
    assert bool((G @ gs.aggregate(G, "config") > 0).all()), "the same direction, the other way round"  # type: ignore[operator]


@pytest.mark.parametrize(("scale_mode", "expected"), [("min", -0.08), ("rmse", -1.7)])
def test_alignedmtl_may_conflict_for_two_tasks(scale_mode: str, expected: float) -> None:
    angle = math.radians(160)
    G = torch.tensor([[1.0, 0.0], [10 * math.cos(angle), 10 * math.sin(angle)]], dtype=torch.float64)
    out = gs.aggregate(G, "alignedmtl", scale_mode=scale_mode)
    assert isinstance(out, Tensor)
    assert float(G[0] @ out) == pytest.approx(expected, rel=0.05)


def test_config_may_conflict_for_dependent_gradients() -> None:
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.2], [-1.0, -0.2]], dtype=torch.float64)
    out = gs.aggregate(G, "config")
    assert isinstance(out, Tensor)
    assert bool((G @ out < 0).any())
    assert float(status(build("config").solve(gs.gram(G)))[2]) == 2


# --- misuse -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("config", {"pref": "twos"}, ValueError, "pref: expected 'ones' or one number a task, found 'twos'"),
        ("config", {"length": "long"}, ValueError, "length: expected one of 'projection', .*, found 'long'"),
        ("alignedmtl", {"scale_mode": "max"}, ValueError, "scale_mode: expected one of 'min', 'median', 'rmse', found 'max'"),
        ("alignedmtl", {"pref": "max"}, ValueError, "pref: expected 'mean', 'sum' or one number a task, found 'max'"),
        ("alignedmtl", {"pref": 3.0}, TypeError, "pref: expected a tensor, tuple or list with one number a task, found float"),
        ("alignedmtl", {"pref": [1.0, "b", 2.0]}, TypeError, r"pref\[1\]: expected a number, found str"),
        (
            "alignedmtl",
            {"pref": torch.ones(3, 1)},
            ValueError,
            r"pref: expected one number a task, found a tensor of shape \[3, 1\]",
        ),
        ("alignedmtl", {"pref": []}, ValueError, "pref: expected one number a task, found none"),
        ("alignedmtl", {"pref": [1.0, math.nan, 1.0]}, ValueError, r"pref\[1\]: expected a finite number, found nan"),
        ("alignedmtl", {"pref": [1.0, 2.0]}, ValueError, "pref: expected 3 numbers, one a task, found 2"),
        ("config", {"pref": torch.ones(4)}, ValueError, "pref: expected 3 numbers, one a task, found 4"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(torch.eye(3, dtype=torch.float64), name, **options)
