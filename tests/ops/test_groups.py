"""Groups of tensors: K of each group, their sum, weights a group, orders a group; compiled against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.samples import LAYOUTS, Sample, maker, sample
from oracles.pcgrad import pcgrad
from tolerances import DTYPES, assert_combined_close, assert_gram_close
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops import native, reference

OPS = torch.ops.gradsurgery


def interleaved(pieces: int, most: int = 3) -> list[int]:
    """Groups whose members are apart. [P]"""
    return [p % min(most, pieces) for p in range(pieces)]


def members(case: Sample, groups: list[int], group: int) -> Sample:
    """The positions of one group, in order."""
    P = case.pieces
    chosen = [p for p in range(P) if groups[p] == group]
    steps = [0] if case.stacked else range(0, case.tasks * P, P)
    return Sample([case.grads[start + p] for start in steps for p in chosen], case.tasks, case.stacked)


def random_weights(*shape: int, device: Any = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)


def check(case: Sample, groups: list[int], dtype: torch.dtype, device: torch.device) -> None:
    G, T = max(groups) + 1, case.tasks
    K = OPS.gram(case.grads, T, case.stacked, groups)
    plain = reference.gram(case.grads, T, case.stacked, groups)
    assert K.shape == plain.shape == (G, T, T)
    assert_gram_close(K.sum(0), OPS.gram(case.grads, T, case.stacked), dtype)
    for g in range(G):
        part = members(case, groups, g)
        assert_gram_close(K[g], part.matrix() @ part.matrix().T if any(x is not None for x in part.grads) else 0 * K[g], dtype)
        assert_gram_close(K[g], plain[g], dtype)
        if device.type == "cpu" and any(x is not None for x in part.grads):
            assert torch.equal(K[g], OPS.gram(part.grads, T, part.stacked)), "blocks are cut within a group"

    w = random_weights(G, T, device=device)
    for accumulate in (False, True):
        out, alone, expected = ([torch.ones_like(o) for o in case.empty()] for _ in range(3))
        OPS.combine_(out, case.grads, w, case.stacked, accumulate, groups)
        reference.combine_(expected, case.grads, w, case.stacked, accumulate, groups)
        for p, target in enumerate(out):
            rows = [case.grads[p]] if case.stacked else case.rows(p)
            OPS.combine_([alone[p]], rows, w[groups[p]].contiguous(), case.stacked, accumulate)
            assert torch.equal(target, alone[p])
            magnitude = sum((x * row.double()).abs() for x, row in zip(w[groups[p]], case.rows(p), strict=True) if row is not None)
            assert_combined_close(target, expected[p].double(), magnitude + torch.ones_like(target, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for tasks in (1, 3, 5):
        case = sample(layout, tasks, dtype, device)
        check(case, interleaved(case.pieces), dtype, device)


@pytest.mark.parametrize("tasks", [2, 8, 9, 33])
def test_task_counts(tasks: int, device: torch.device) -> None:
    make = maker(torch.float32, device)
    check(Sample([make(n) for _ in range(tasks) for n in (700, 3, 1025)], tasks), [1, 0, 1], torch.float32, device)


def test_blocks_of_large_groups(device: torch.device) -> None:
    """Groups around the border of a block, with pieces that cross it; one begins in the middle of a block of the whole."""
    make = maker(torch.float32, device)
    sizes = (65_000, 1, 65_536, 2_000, 0, 140_001, 5)
    groups = [0, 1, 2, 0, 4, 3, 1]
    check(Sample([make(n) for _ in range(3) for n in sizes], 3), groups, torch.float32, device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_thousand_groups(device: torch.device) -> None:
    make = maker(torch.float32, device)
    case = Sample([make(p % 9, 3) for _ in range(4) for p in range(1500)], 4)
    groups = [(7 * p) % 1000 for p in range(1500)]
    check(case, groups, torch.float32, device)
    first = OPS.gram(case.grads, 4, False, groups)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(OPS.gram(case.grads, 4, False, groups), first)


@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    tasks=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_any_grouping_sums_to_the_whole(groups: list[int], tasks: int, seed: int) -> None:
    groups = [sorted(set(groups)).index(g) for g in groups]
    generator = np.random.default_rng(seed)
    make = maker(torch.float64, seed=seed)
    shapes = [int(generator.integers(0, 40)) for _ in groups]
    grads = [make(n) if generator.random() > 0.2 else None for _ in range(tasks) for n in shapes]
    if all(g is None for g in grads):
        return
    K = OPS.gram(grads, tasks, False, groups)
    assert_gram_close(K.sum(0), OPS.gram(grads, tasks))
    assert_gram_close(K.sum(0), reference.gram(grads, tasks))


def test_a_single_group_is_the_whole(device: torch.device) -> None:
    case = sample("lists_with_gaps", 4, torch.float32, device)
    P = case.pieces
    K, w = OPS.gram(case.grads, 4), random_weights(4, device=device)
    assert torch.equal(OPS.gram(case.grads, 4, False, [0] * P), K[None])
    for one in (None, []):
        assert torch.equal(OPS.gram(case.grads, 4, False, one), K)
    expected, out = OPS.combine(case.grads, w), OPS.combine(case.grads, w[None], False, [0] * P)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_a_bad_number_stays_in_its_group(device: torch.device) -> None:
    G = maker(torch.float32, device)(3, 4, 50)  # [P, T, N]
    G[1, 2, 7] = torch.nan
    for K in (OPS.gram(list(G), 4, True, [0, 1, 2]), reference.gram(list(G), 4, True, [0, 1, 2])):
        assert K[[0, 2]].isfinite().all()
        assert torch.equal(K[1].isfinite(), ~torch.tensor([[t == 2 or s == 2 for t in range(4)] for s in range(4)], device=device))
    w = torch.ones(3, 4, dtype=torch.float64, device=device)
    w[2, 0] = torch.nan
    finite = [bool(out.isfinite().all()) for out in OPS.combine(list(G), w, True, [0, 1, 2])]
    assert finite == [True, False, False]


def test_out_may_be_a_gradient(device: torch.device) -> None:
    apart, aliased = (sample("contiguous", 4, torch.float32, device) for _ in range(2))
    both = [Sample([g for row in case.grads for g in (row, None if row is None else 2 * row)], 4) for case in (apart, aliased)]
    w, out = random_weights(2, 4, device=device), both[0].empty()
    OPS.combine_(out, both[0].grads, w, False, False, [1, 0])
    targets = [g for g in both[1].rows(0)[2:3] + both[1].rows(1)[2:3] if g is not None]
    OPS.combine_(targets, both[1].grads, w, False, False, [1, 0])
    assert all(torch.equal(a, b) for a, b in zip(targets, out, strict=True))


@pytest.mark.skipif(native._cpu is None, reason="gradsurgery is installed without compiled code")
def test_what_would_read_wild_memory_is_refused() -> None:
    rows = [torch.ones(4) for _ in range(6)]
    w = torch.ones(2, 2, dtype=torch.float64)
    for groups, message in (
        ([0, 2, 0], "found none in group 1"),
        ([0, 1], "one number a tensor"),
        ([0, -1, 0], "found -1"),
        ([0, 1, 10**15], "found 1000000000000000"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.gram(rows, 2, False, groups)
    for given_groups, weights in (([0, 2, 0], w), ([0, -1, 0], w), ([0, 0, 0], w[0]), (None, w)):
        with pytest.raises(RuntimeError, match="groups"):
            OPS.combine_([torch.ones(4) for _ in range(3)], rows, weights, False, False, given_groups)
    with pytest.raises(RuntimeError, match=r"\[G, T, T\]"):
        OPS.pcgrad_weights(torch.ones(2, 3, 2, dtype=torch.float64))


# --- weights of a batch -----------------------------------------------------------------------------------------------------------

Weights = Callable[..., Tensor]


@pytest.fixture(params=["compiled", "reference"])
def weights(request: pytest.FixtureRequest) -> Weights:
    chosen: Weights = OPS.pcgrad_weights if request.param == "compiled" else reference.pcgrad_weights
    return chosen


@pytest.mark.parametrize("tasks", [1, 2, 5, 9, 33])
def test_pcgrad_of_a_batch_is_algorithm_1_in_each_group(weights: Weights, tasks: int, device: torch.device) -> None:
    rows = maker(torch.float64, device)(4, tasks, 2 * tasks) - 0.3
    K = rows @ rows.mT
    order = torch.stack([torch.randperm(tasks) for _ in range(tasks)]).to(device)
    for chosen in (None, order):
        for include_self in (False, True):
            w = weights(K, chosen, None, include_self, 1.0 / tasks)
            assert w.shape == (4, tasks)
            for g in range(4):
                expected = pcgrad(rows[g], "ascending" if chosen is None else order.tolist(), include_self, "mean")
                torch.testing.assert_close(w[g] @ rows[g], expected, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(w[g], weights(K[g], chosen, None, include_self, 1.0 / tasks), rtol=1e-12, atol=0)


def test_groups_draw_orders_of_their_own(weights: Weights, device: torch.device) -> None:
    rows = maker(torch.float64, device)(5, 10) - 0.3
    K = (rows @ rows.T).expand(6, 5, 5).contiguous()
    key = torch.tensor([7, 2**33], device=device)
    w = weights(K, None, key)
    assert key.tolist() == [7, 2**33 + 1], "one step a call"
    assert len({tuple(row) for row in w.tolist()}) >= 4, "the same K, other orders"
    for g in range(6):
        drawn = reference.random_order(torch.tensor([7, 2**33]), 5, g).to(device)
        torch.testing.assert_close(w[g], weights(K[g], drawn), rtol=1e-12, atol=0)
    first = weights(K[0], None, torch.tensor([7, 2**33], device=device))
    torch.testing.assert_close(w[0], first, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_non_finite_group_keeps_the_key(weights: Weights, bad: int, value: float, device: torch.device) -> None:
    rows = maker(torch.float64, device)(4, 5, 10) - 0.3
    K = rows @ rows.mT
    expected = weights(K, None, torch.tensor([1, 2], device=device))
    K[bad, 2, 2] = value
    key = torch.tensor([1, 2], device=device)
    w = weights(K, None, key)
    assert key.tolist() == [1, 2]
    assert w[bad].isnan().all()
    others = [g for g in range(4) if g != bad]
    torch.testing.assert_close(w[others], expected[others], rtol=1e-12, atol=0)


def test_an_invalid_order_gives_nan_to_every_group(weights: Weights, device: torch.device) -> None:
    K = torch.eye(3, dtype=torch.float64, device=device).expand(2, 3, 3).contiguous()
    assert weights(K, torch.full((3, 3), 3, device=device)).isnan().all()


@pytest.mark.skipif(native._host is None, reason="gradsurgery is installed without compiled code")
def test_the_host_module_takes_a_batch() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4, 6))
    K = rows @ rows.transpose(0, 2, 1)
    assert native._host is not None
    w = native._host.pcgrad_weights(K, key=(5, 6), scale=0.5)
    assert np.array_equal(w, OPS.pcgrad_weights(torch.from_numpy(K), None, torch.tensor([5, 6]), False, 0.5).numpy())
    assert np.array_equal(native._host.pcgrad_weights(K[0], key=(5, 6), scale=0.5), w[0])


# --- gs.gram and gs.combine -------------------------------------------------------------------------------------------------------


def test_labels(device: torch.device) -> None:
    make = maker(torch.float32, device)
    grads: list[Any] = [[make(3, 2), make(7), None, make(4)] for _ in range(3)]
    grads[1] = None
    labels = ["conv", ("fc", 1), 5, "conv"]
    K = gs.gram(grads, groups=labels)
    assert K.shape == (3, 3, 3)
    assert not K[2].any(), "no task has a gradient there"
    assert_gram_close(K[0], gs.gram([None if g is None else [g[0], g[3]] for g in grads]), torch.float32)
    assert_gram_close(K[1], gs.gram([None if g is None else g[1] for g in grads]), torch.float32)
    w = random_weights(3, 3, device=device)
    result = gs.combine(grads, w, groups=labels)
    expected = [gs.combine([None if g is None else g[p] for g in grads], w[(0, 1, 2, 0)[p]]) for p in (0, 1, 3)]
    assert result[2] is None
    assert all(torch.equal(a, b) for a, b in zip([result[0], result[1], result[3]], expected, strict=True))  # type: ignore[arg-type]
    out = [torch.full_like(make(*shape), torch.nan) for shape in ((3, 2), (7,), (2,), (4,))]
    assert gs.combine(grads, w.float().double(), out=out, groups=labels) is out
    torch.testing.assert_close([out[0], out[1], out[3]], expected)
    assert not out[2].any()


def test_a_matrix_is_one_group(device: torch.device) -> None:
    G = maker(torch.float32, device)(3, 40)
    w = random_weights(3, device=device)
    for form in (G, list(G)):
        assert torch.equal(gs.gram(form, groups=["all"]), gs.gram(form)[None])
        assert torch.equal(gs.combine(form, w[None], groups=["all"]), gs.combine(form, w))  # type: ignore[arg-type]


def test_bad_groups() -> None:
    grads = [[torch.ones(3), torch.ones(2)]] * 2
    for call in (lambda groups: gs.gram(grads, groups=groups), lambda groups: gs.combine(grads, torch.ones(2), groups=groups)):
        with pytest.raises(ValueError, match=r"groups: expected 2 labels, .* found 3"):
            call([0, 1, 1])
        with pytest.raises(TypeError, match=r"groups: expected a sequence"):
            call("ab")
    for shape in ((2,), (1, 2), (2, 1), (3, 2)):
        with pytest.raises(ValueError, match=r"weights: expected a tensor of shape \[2, 2\]"):
            gs.combine(grads, torch.ones(shape), groups=["a", "b"])
    with pytest.raises(ValueError, match=r"weights: expected a tensor of shape \[2\], found \[1, 2\]"):
        gs.combine(grads, torch.ones(1, 2))


# --- cross-Gram -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against(dtype: torch.dtype, device: torch.device) -> None:
    """Measured, like K, by the norms of the two rows."""
    G, H = maker(dtype, device)(3, 5, 8), maker(dtype, device, 1)(3, 5, 8)
    whole = torch.cat([G, H]).double().flatten(1)
    both = whole @ whole.T
    for one, other in ((G, H), (list(G), H), (G, list(H)), (list(G), list(H))):
        A = gs.gram(one, against=other)
        assert A.shape == (3, 3)
        assert A.is_contiguous()
        both[:3, 3:] = A
        assert_gram_close(both.triu() + both.triu(1).T, whole @ whole.T, dtype)
        assert torch.equal(A.T, gs.gram(other, against=one)) or device.type == "cuda"
    assert gs.gram(G[:2], against=H).shape == (2, 3)


def test_against_with_gaps_and_groups(device: torch.device) -> None:
    make = maker(torch.float64, device)
    g: list[Any] = [[make(3), None, make(2, 2)], None, [make(3), make(4), None]]
    h: list[Any] = [[None, make(4), make(2, 2)], [make(3), make(4), make(2, 2)], None]
    A, parts = gs.gram(g, against=h), gs.gram(g, against=h, groups=["a", "b", "a"])
    zeros = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((3,), (4,), (2, 2))]
    flat = [[[z if x is None else x for x, z in zip(row or [None] * 3, zeros, strict=True)] for row in rows] for rows in (g, h)]
    pairs = [[[(x * y).sum() for x, y in zip(a, b, strict=True)] for b in flat[1]] for a in flat[0]]
    dots = torch.tensor(pairs, dtype=torch.float64, device=device)
    torch.testing.assert_close(A, dots.sum(2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts[0], dots[:, :, 0] + dots[:, :, 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts[1], dots[:, :, 1], rtol=1e-12, atol=1e-12)


def test_against_is_differentiable() -> None:
    make = maker(torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, h: gs.gram(g, against=h), (make(2, 4), make(3, 4)))


@pytest.mark.parametrize(
    ("against", "error", "message"),
    [
        (torch.ones(2, 4), ValueError, r"against\[0\]: expected shape \[3\] like grads, found \[4\]"),
        ([[torch.ones(3), torch.ones(3)]], ValueError, r"against: expected 1 tensors a task like grads, found 2"),
        (torch.ones(2, 3, device="meta"), ValueError, r"against: expected device cpu like grads, found meta"),
        (torch.ones(2, 3).int(), TypeError, r"against: expected dtype .* found torch.int32"),
        ([torch.ones(3), 5], TypeError, r"against\[1\]: expected a tensor, a list of tensors or None, found int"),
        ([None], ValueError, r"against: expected a gradient of at least one task"),
        ([], ValueError, r"against: expected at least one task"),
        (7, TypeError, r"against: expected a \[T, N\] tensor or a sequence"),
    ],
)
def test_bad_against(against: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.gram(torch.ones(2, 3), against=against)
