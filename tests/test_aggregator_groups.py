"""group_by: surgery of its own for each group of the features' tensors, in every form, for every method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods.gradients import FEWEST
from torch import Tensor

import gradsurgery as gs

SPECS = gs.methods()
GROUPED = sorted(name for name, spec in SPECS.items() if spec.family in ("gram", "scalarization", "cross"))
T = 4
Pyramid = dict[str, Any]


def options(method: str) -> dict[str, Any]:
    known = SPECS[method].options
    return ({"seed": 2} if "seed" in known else {}) | ({"order": "ascending"} if "order" in known else {})


def pyramid(seed: int = 0) -> Pyramid:
    """Features of two levels, the second of two tensors."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return {"fine": [leaf(3, 4)], "coarse": [leaf(5), leaf(2, 2)]}


def leaves(features: Pyramid) -> list[Tensor]:
    return [*features["fine"], *features["coarse"]]


def directions(seed: int = 1) -> list[list[Tensor]]:
    """The gradient that each task sends to each tensor. [T][P]"""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in leaves(pyramid())] for _ in range(T)]


def through_split(surgery: gs.GradientAggregator, features: Pyramid, rows: list[list[Tensor]]) -> None:
    views = surgery.split(features, T)
    sum((z * g).sum() for view, row in zip(views, rows, strict=True) for z, g in zip(leaves(view), row, strict=True)).backward()  # type: ignore[union-attr]


def through_detach(surgery: gs.GradientAggregator, features: Pyramid, rows: list[list[Tensor]]) -> None:
    cut = surgery.detach(features)
    for row in rows:
        sum((z * g).sum() for z, g in zip(leaves(cut), row, strict=True)).backward()  # type: ignore[union-attr]
    surgery.backward()


LABELS = {"tensor": [[0], [1], [2]], "layer": [[0], [1, 2]]}


@pytest.mark.parametrize("form", [through_split, through_detach])
@pytest.mark.parametrize("by", LABELS)
def test_each_group_by_itself(by: Any, form: Any) -> None:
    rows = directions()
    for method in ("pcgrad", "mgda", "mean"):
        features = pyramid()
        surgery = gs.GradientAggregator(method, group_by=by, **options(method))
        form(surgery, features, rows)
        for group in LABELS[by]:
            alone = gs.aggregate([[row[p] for p in group] for row in rows], method, **options(method))
            for p, expected in zip(group, alone, strict=True):
                torch.testing.assert_close(leaves(features)[p].grad, expected)


@pytest.mark.parametrize("method", GROUPED)
def test_the_function_is_a_first_step(method: str) -> None:
    rows = directions()
    for gaps in (rows, [[None, *row[1:]] for row in rows]):
        expected = gs.GradientAggregator(method, group_by=lambda path: path == "[1]", **options(method)).aggregate(gaps)
        out = gs.aggregate(gaps, method, groups=["a", "b", "a"], **options(method))
        targets = [torch.empty_like(x) for x in rows[0]]
        gs.aggregate(gaps, method, groups=["a", "b", "a"], out=targets, **options(method))
        for one, other, target in zip(expected, out, targets, strict=True):
            assert (one is None) == (other is None)
            if one is None or other is None:
                assert not target.any()
            else:
                assert torch.equal(one, other)
                assert torch.equal(one, target)


def test_a_function_names_the_groups() -> None:
    heard: list[str] = []

    def by(path: str) -> str:
        heard.append(path)
        return "shape of five" if path == "['coarse'][0]" else "others"

    surgery = gs.GradientAggregator("sum", group_by=by)
    through_split(surgery, pyramid(), directions())
    assert heard == ["['fine'][0]", "['coarse'][0]", "['coarse'][1]"]
    assert surgery.statistics().groups == ("others", "shape of five")


@pytest.mark.parametrize("method", GROUPED)
def test_statistics_of_groups(method: str) -> None:
    rows = directions()
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    surgery = gs.GradientAggregator(method, group_by="tensor", **options(method))
    out = surgery.aggregate(rows)
    joined = torch.cat([g.flatten() for g in out])
    stats = surgery.statistics()
    assert stats.groups == ("[0]", "[1]", "[2]")
    assert stats.weights.shape == (3, T)
    assert surgery.weights is not None
    assert surgery.weights.shape == (3, T)
    assert stats.group_grams.shape == (3, T, T)
    torch.testing.assert_close(stats.gram, flat @ flat.T)
    torch.testing.assert_close(stats.alignment, flat @ joined)
    assert stats.norm == pytest.approx(float(joined.norm()))
    assert set(stats.scalars()) >= {"norm", "conflicts", *(f"weight/{t}" for t in range(T))}


@pytest.mark.parametrize("method", GROUPED)
def test_memory_of_groups_is_apart_and_resumes(method: str) -> None:
    surgery = gs.GradientAggregator(method, group_by="layer", **options(method))
    for seed in range(3):
        surgery.aggregate(directions(seed))
    resumed = gs.GradientAggregator(method, group_by="layer", **options(method))
    resumed.load_state_dict(copy.deepcopy(surgery.state_dict()))
    for seed in range(3, 6):
        expected, actual = surgery.aggregate(directions(seed)), resumed.aggregate(directions(seed))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))  # type: ignore[arg-type]


def test_gradvac_remembers_each_groups_cosines() -> None:
    surgery = gs.GradientAggregator("gradvac", group_by="tensor", order="ascending", beta=0.5)
    alone = [gs.GradientAggregator("gradvac", order="ascending", beta=0.5) for _ in range(3)]
    for seed in range(4):
        rows = directions(seed)
        out = surgery.aggregate(rows)
        for p, single in enumerate(alone):
            torch.testing.assert_close(single.aggregate([row[p] for row in rows]), out[p])


def test_random_orders_of_groups_are_their_own() -> None:
    """Two groups with the same gradients meet in orders of their own."""
    G = torch.tensor([[-4.0, -4.0], [2.0, -4.0], [2.0, 4.0]], dtype=torch.float64)
    surgery = gs.GradientAggregator("pcgrad", group_by="tensor", seed=3)
    apart = 0
    for _ in range(20):
        first, second = surgery.aggregate([[g, g] for g in G])
        apart += not torch.equal(first, second)
    assert apart > 0
    assert surgery.state_dict()["key"].tolist() == [3, 20]


def test_a_group_that_no_task_reaches_keeps_its_place() -> None:
    surgery = gs.GradientAggregator("gradvac", group_by="tensor", order="ascending", beta=0.5)
    rows = directions()
    surgery.aggregate(rows)
    before = surgery.state_dict()["similarity"].clone()
    gaps = [[row[0], None, row[2]] for row in rows]
    out = surgery.aggregate(gaps)
    assert out[1] is None
    after = surgery.state_dict()["similarity"]
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
    target = [torch.full_like(x, torch.nan) for x in rows[0]]
    surgery.aggregate(gaps, out=target)
    assert not target[1].any()


def test_groups_with_an_absent_task_and_one_that_comes_later() -> None:
    rows = directions()
    surgery = gs.GradientAggregator("gradvac", group_by="tensor", order="ascending")
    surgery.aggregate(rows[:3])
    out = surgery.aggregate([rows[0], None, *rows[2:]])  # type: ignore[list-item]
    assert surgery.state_dict()["similarity"].shape == (3, T, T)
    assert surgery.statistics().weights[:, 1].tolist() == [0.0] * 3
    assert all(g is not None for g in out)


@pytest.mark.parametrize("method", sorted(name for name, spec in SPECS.items() if spec.family == "coordinatewise"))
def test_coordinatewise_methods_need_no_groups(method: str) -> None:
    rows = directions()
    plain, grouped = (gs.GradientAggregator(method, group_by=by, **options(method)) for by in (None, "tensor"))
    for one, other in zip(plain.aggregate(rows), grouped.aggregate(rows), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert FEWEST.get(method, 1) <= T


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"group_by: expected 'layer', 'tensor', 'sample' or a function .* found 'module'"):
        gs.GradientAggregator("sum", group_by="module")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"group"):
        gs.GradientAggregator("dbmtl", group_by="tensor").aggregate(directions(), [1.0] * T)  # type: ignore[list-item]
    surgery = gs.GradientAggregator("gradvac", group_by="tensor")
    surgery.aggregate(directions())
    with pytest.raises(ValueError, match=r"group_by: expected the groups \['\[0\]', '\[1\]', '\[2\]'\] of earlier steps"):
        surgery.aggregate([row[:2] for row in directions()])
