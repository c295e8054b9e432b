"""``group_by="sample"``: surgery of its own for every sample of a batch, in every form, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods.gradients import FEWEST
from torch import Tensor

import gradsurgery as gs

SPECS = gs.methods()
REMEMBERING = ("crmogm", "gradvac", "modo", "pcd", "sdmgrad")
WEIGHTED = sorted(name for name, spec in SPECS.items() if spec.family in ("gram", "scalarization") and name not in REMEMBERING)
COORDINATEWISE = sorted(name for name, spec in SPECS.items() if spec.family == "coordinatewise")
T, B = 4, 5


def options(method: str) -> dict[str, Any]:
    known = SPECS[method].options
    return ({"seed": 2} if "seed" in known else {}) | ({"order": "ascending"} if "order" in known else {})


def pyramid(seed: int = 0) -> dict[str, Tensor]:
    """Features of two levels, of one batch."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fine": (B, 3, 4), "coarse": (B, 2)}
    return {name: torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}


def directions(seed: int = 1) -> list[list[Tensor]]:
    """The gradient that each task sends to each tensor. [T][P]"""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in pyramid().values()] for _ in range(T)]


def through_split(surgery: gs.GradientAggregator, features: dict[str, Tensor], rows: list[list[Tensor]]) -> None:
    views = surgery.split(features, T)
    sum((z * g).sum() for view, row in zip(views, rows, strict=True) for z, g in zip(view.values(), row, strict=True)).backward()  # type: ignore[union-attr]


def through_detach(surgery: gs.GradientAggregator, features: dict[str, Tensor], rows: list[list[Tensor]]) -> None:
    cut = surgery.detach(features)
    for row in rows:
        sum((z * g).sum() for z, g in zip(cut.values(), row, strict=True)).backward()  # type: ignore[union-attr]
    surgery.backward()


def explicitly(surgery: gs.GradientAggregator, features: dict[str, Tensor], rows: list[list[Tensor]]) -> None:
    for x, g in zip(features.values(), surgery.aggregate(rows), strict=True):
        x.grad = g


@pytest.mark.parametrize("form", [through_split, through_detach, explicitly])
@pytest.mark.parametrize("method", [name for name in WEIGHTED if name != "random"])
def test_every_sample_by_itself(method: str, form: Any) -> None:
    rows, features = directions(), pyramid()
    surgery = gs.GradientAggregator(method, group_by="sample", **options(method))
    form(surgery, features, rows)
    for b in range(B):
        alone = gs.aggregate([[g[b] for g in row] for row in rows], method, **options(method))
        for x, expected in zip(features.values(), alone, strict=True):
            assert x.grad is not None
            torch.testing.assert_close(x.grad[b], expected)


@pytest.mark.parametrize("method", WEIGHTED)
def test_statistics_of_samples(method: str) -> None:
    rows = directions()
    flat = torch.stack([torch.cat([g.flatten(1) for g in row], dim=1) for row in rows])  # [T, B, N]
    surgery = gs.GradientAggregator(method, group_by="sample", **options(method))
    out = surgery.aggregate(rows)
    joined = torch.cat([g.flatten(1) for g in out], dim=1)  # type: ignore[union-attr]
    stats = surgery.statistics()
    assert stats.groups == ("0", "1", "2", "3", "4")
    assert stats.weights.shape == (B, T)
    assert surgery.weights is not None
    assert surgery.weights.shape == (B, T)
    torch.testing.assert_close(stats.group_grams, torch.einsum("ibn,jbn->bij", flat, flat))
    torch.testing.assert_close(stats.gram, torch.einsum("ibn,jbn->ij", flat, flat))
    torch.testing.assert_close(stats.alignment, torch.einsum("ibn,bn->i", flat, joined))
    assert stats.norm == pytest.approx(float(joined.norm()))
    assert set(stats.scalars()) >= {"norm", "conflicts", *(f"weight/{t}" for t in range(T))}


@pytest.mark.parametrize("method", ["pcgrad", "mgda", "cagrad", "mean"])
def test_an_absent_task(method: str) -> None:
    rows: list[Any] = directions()
    surgery = gs.GradientAggregator(method, tasks=T, group_by="sample", **options(method))
    out = surgery.aggregate([rows[0], None, *rows[2:]])
    assert surgery.statistics().weights[:, 1].tolist() == [0.0] * B
    for b in range(B):
        expected = gs.aggregate([[g[b] for g in rows[t]] for t in (0, 2, 3)], method, **options(method))
        for x, y in zip(out, expected, strict=True):
            torch.testing.assert_close(x[b], y)  # type: ignore[index]


def test_a_position_that_no_task_reaches() -> None:
    rows: list[Any] = [[row[0], None] for row in directions()]
    surgery = gs.GradientAggregator("mgda", group_by="sample")
    out, target = surgery.aggregate(rows), [torch.ones(B, 3, 4, dtype=torch.float64), torch.ones(B, 7)]
    assert out[1] is None
    surgery.aggregate(rows, out=target)
    assert torch.equal(target[0], out[0])  # type: ignore[arg-type]
    assert not target[1].any()


def test_random_orders_are_each_samples_own_and_resume() -> None:
    G = torch.tensor([[-4.0, -4.0], [2.0, -4.0], [2.0, 4.0]], dtype=torch.float64)[:, None].expand(3, 20, 2)
    surgery = gs.GradientAggregator("pcgrad", group_by="sample", seed=3)
    first = surgery.aggregate(G)
    assert len({tuple(row.tolist()) for row in first}) > 1, "the same gradients, other orders"  # type: ignore[union-attr]
    assert surgery.state_dict()["key"].tolist() == [3, 1]
    resumed = gs.GradientAggregator("pcgrad", group_by="sample", seed=3)
    resumed.load_state_dict(copy.deepcopy(surgery.state_dict()))
    assert torch.equal(resumed.aggregate(G[:, :7]), surgery.aggregate(G[:, :7]))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["pcgrad", "mgda", "random"])
def test_a_bad_sample_touches_no_other(method: str) -> None:
    rows = directions()
    clean = gs.GradientAggregator(method, group_by="sample", **options(method)).aggregate(rows)
    rows[1][0][2, 0, 0] = torch.nan
    surgery = gs.GradientAggregator(method, group_by="sample", **options(method))
    out = surgery.aggregate(rows)
    others = [b for b in range(B) if b != 2]
    for x, y in zip(out, clean, strict=True):
        assert torch.equal(x[others], y[others])  # type: ignore[index]
    assert surgery.statistics().nonfinite


@pytest.mark.parametrize("method", ["pcgrad", "mgda", "sum"])
def test_an_empty_batch(method: str) -> None:
    surgery = gs.GradientAggregator(method, group_by="sample", **options(method))
    x = torch.randn(0, 3, requires_grad=True)
    a, b = surgery.split(x, 2)
    (a.sum() + b.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 3)
    assert surgery.statistics().weights.shape == (0, 2)
    assert surgery.statistics().gram.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("method", COORDINATEWISE)
def test_coordinatewise_methods_are_the_same(method: str) -> None:
    rows = directions()
    plain, by_sample = (gs.GradientAggregator(method, group_by=by, **options(method)) for by in (None, "sample"))
    for one, other in zip(plain.aggregate(rows), by_sample.aggregate(rows), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert FEWEST.get(method, 1) <= T


def test_split_in_a_compiled_function() -> None:
    torch.compiler.reset()
    surgery = gs.GradientAggregator("pcgrad", group_by="sample", order="ascending")
    rows = directions()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        views = surgery.split({"fine": x.tanh(), "coarse": y.tanh()}, T)
        parts = [(z * g).sum() for view, row in zip(views, rows, strict=True) for z, g in zip(view.values(), row, strict=True)]
        return torch.stack(parts).sum()

    eager, traced = pyramid().values(), pyramid().values()
    loss(*eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(*traced).backward()
    for one, other in zip(eager, traced, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert surgery.statistics().weights.shape == (B, T)


def test_only_the_last_step_is_kept_unless_asked() -> None:
    kept = {asked: gs.GradientAggregator("mgda", group_by="sample", history=asked) for asked in (None, 2)}
    for surgery in kept.values():
        for _ in range(3):
            surgery.aggregate(directions())
    assert [len(surgery.history) for surgery in kept.values()] == [1, 2]


def test_gradnorm_hears_the_gram_matrix_of_all() -> None:
    rows, heard = directions(), []
    surgery = gs.GradientAggregator("pcgrad", group_by="sample")
    surgery.register_step_hook(lambda _, gram: heard.append(gram))
    surgery.aggregate(rows)
    torch.testing.assert_close(heard[0], gs.gram(rows))


# --- what is refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*REMEMBERING, "dbmtl", "moco", "excessmtl"])
def test_methods_with_memory_of_a_group(method: str) -> None:
    with pytest.raises(ValueError, match=rf"group_by: expected a method whose weights K alone decides .* found {method!r}"):
        gs.GradientAggregator(method, group_by="sample")


def test_weights_do_not_serve_another_batch() -> None:
    with pytest.raises(ValueError, match=r"every: expected 1 with group_by='sample', .* found 10"):
        gs.GradientAggregator("mgda", group_by="sample", every=10)


def test_parameters_have_no_samples() -> None:
    surgery = gs.GradientAggregator("mgda", group_by="sample")
    w = torch.randn(3, requires_grad=True)
    for call in (surgery.backward, surgery.collect, surgery.total):
        with pytest.raises(ValueError, match=r"group_by: .* surgery on parameters.*found 'sample'. Use split\(\) or detach\(\)"):
            call([w.square().sum(), -w.sum()])
    assert w.grad is None


@pytest.mark.parametrize("form", ["split", "detach"])
def test_features_without_a_batch(form: str) -> None:
    surgery = gs.GradientAggregator("mgda", tasks=2, group_by="sample")
    call = getattr(surgery, form)
    x = torch.randn((), requires_grad=True)
    with pytest.raises(
        ValueError, match=r"features: expected a batch as first dimension, for surgery by sample, found a shape of \[\]"
    ):
        call(x)
    levels = {"p3": torch.randn(4, 2, requires_grad=True), "p4": torch.randn(2, 4, requires_grad=True)}
    message = r"\['p4'\]: expected 4 samples in the first dimension like \['p3'\], .* found a shape of \[2, 4\]"
    with pytest.raises(ValueError, match=message):
        call(levels)
    with pytest.raises(ValueError, match=r"\[1\]: expected 4 samples"):
        surgery.aggregate([[torch.ones(4, 2), torch.ones(2)]] * 2)
