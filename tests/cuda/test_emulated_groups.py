"""Groups of tensors on the emulator: many Grams in one launch, a combine with weights a group, a batch of PCGrad solvers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cuda_emulator import Emulator, Float64, Row, matrix, placed
from hypothesis import given
from hypothesis import strategies as st
from ops.samples import LAYOUTS, sample
from tolerances import DTYPES, TOLERANCES

from gradsurgery.ops import reference


def draw(tasks: int, numel: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Row]:
    generator = torch.Generator().manual_seed(1000 * seed + numel)
    return [placed(g, seed % 3, dtype) for g in torch.randn(tasks, numel, generator=generator, dtype=torch.float64)]


def check(emulator: Emulator, pieces: Sequence[Sequence[Row]], sizes: Sequence[int], tolerance: float) -> Float64:
    """Every K against the products of its group; their sum against those of all."""
    K = emulator.gram(pieces, sizes)
    assert K.shape == (len(sizes), len(pieces[0]), len(pieces[0]))
    assert np.array_equal(K, K.transpose(0, 2, 1))
    first = 0
    for g, size in enumerate(sizes):
        members = pieces[first : first + size]
        first += size
        G = matrix(members) if members else np.zeros((len(pieces[0]), 0))
        norms = np.sqrt((G * G).sum(1))
        assert (np.abs(K[g] - G @ G.T) <= tolerance * np.outer(norms, norms)).all()
    whole = emulator.gram(pieces)
    norms = np.sqrt(whole.diagonal())
    assert (np.abs(K.sum(0) - whole) <= tolerance * np.outer(norms, norms)).all()
    return K


@pytest.mark.parametrize("tasks", range(1, 34))
def test_task_counts(emulator: Emulator, tasks: int) -> None:
    for dtype in (torch.float32, torch.float64) if tasks % 4 == 1 else (torch.float32,):
        check(emulator, [draw(tasks, n, dtype, p) for p, n in enumerate((300, 1, 2049, 64))], [1, 2, 1], TOLERANCES[dtype].gram)


@pytest.mark.parametrize("tasks", [3, 8, 9, 34])
def test_one_group_is_no_group(emulator: Emulator, tasks: int) -> None:
    pieces = [draw(tasks, n, seed=n) for n in (5000, 1, 333)]
    assert np.array_equal(emulator.gram(pieces, [3])[0], emulator.gram(pieces))


@pytest.mark.parametrize("tasks", [2, 12])
def test_empty_pieces_and_absent_rows(emulator: Emulator, tasks: int) -> None:
    nobody: list[Row] = [None] * tasks
    pieces: list[list[Row]] = [nobody, draw(tasks, 40), draw(tasks, 2050, torch.bfloat16), nobody, draw(tasks, 7), nobody]
    pieces[2][1] = None
    K = check(emulator, pieces, [1, 1, 2, 1, 1], TOLERANCES[torch.float32].gram)
    assert not K[0].any()
    assert not K[4].any()
    assert not K[2, 1].any()
    assert not emulator.gram([nobody] * 5, [2, 1, 2]).any()


@pytest.mark.parametrize("groups", [2, 130, 1000])
@pytest.mark.parametrize("tasks", [3, 9])
def test_many_groups(emulator: Emulator, tasks: int, groups: int) -> None:
    """The table lies in device memory; above 513 groups of T > 8 some blocks have nothing to do."""
    sizes = [1 + g % 2 for g in range(groups)]
    pieces = [draw(tasks, 1 + p % 5, seed=p) for p in range(sum(sizes))]
    K = check(emulator, pieces, sizes, TOLERANCES[torch.float32].gram)
    w = np.random.default_rng(0).normal(size=(groups, tasks))
    out = [placed(torch.full((1 + p % 5,), torch.nan)) for p in range(len(pieces))]
    emulator.combine(out, pieces, w, sizes=sizes)
    of_piece = np.repeat(np.arange(groups), sizes)
    for p, target in enumerate(out):
        alone = placed(torch.empty_like(target))
        emulator.combine([alone], [pieces[p]], w[of_piece[p]])
        assert torch.equal(target, alone)
    assert np.isfinite(K).all()


def test_a_bad_number_stays_in_its_group(emulator: Emulator) -> None:
    for tasks in (3, 9):
        pieces = [draw(tasks, 100, seed=p) for p in range(3)]
        bad = pieces[1][0]
        assert bad is not None
        bad[50] = torch.inf
        K = emulator.gram(pieces, [1, 1, 1])
        assert np.isfinite(K[[0, 2]]).all()
        assert np.isfinite(K[1, 1:, 1:]).all()
        assert not np.isfinite(K[1, 0]).any()


@given(
    tasks=st.sampled_from([2, 8, 9, 33, 1000]),
    groups=st.lists(st.lists(st.sampled_from([0, 1, 2048, 2049, 70_000, 9_000_000]), max_size=5), min_size=2, max_size=60),
)
def test_blocks_cover_the_chunks_of_one_group_each(emulator: Emulator, tasks: int, groups: list[list[int]]) -> None:
    """Each chunk is in one block, each block in one group, and the second stage sums the blocks of the group."""
    numel = np.array([n for sizes in groups for n in sizes] or [0], dtype=np.int64)
    first = np.cumsum([0, *map(len, groups)], dtype=np.int64)
    first[-1] = len(numel)
    chunks = len(emulator.chunks(numel.tolist(), tasks))
    visited, blocks_of = np.full((chunks + 1, 3), -1, dtype=np.int64), np.full(len(first), -1, dtype=np.int64)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (numel, first, visited, blocks_of)]
    blocks = emulator.library.gs_block_chunks(tasks, len(numel), pointers[0], len(groups), *pointers[1:])
    assert blocks <= min(chunks, 1024 + len(groups))
    assert sorted(visited[:chunks, 2]) == list(range(chunks))
    assert (visited[chunks] == -1).all()
    assert blocks_of[0] == 0
    assert blocks_of[-1] == blocks
    assert (np.diff(blocks_of) >= 0).all()
    block, group = visited[:chunks, 0], visited[:chunks, 1]
    assert (blocks_of[group] <= block).all()
    assert (block < blocks_of[group + 1]).all()
    per_group = np.bincount(group, minlength=len(groups))
    assert ((per_group > 0) == [sum(sizes) > 0 for sizes in groups]).all()


# --- the batch of solvers ---------------------------------------------------------------------------------------------------------


def grams(groups: int, tasks: int) -> Float64:
    G = np.random.default_rng(tasks).normal(size=(groups, tasks, 2 * tasks)) - 0.2
    return G @ G.transpose(0, 2, 1)


@pytest.mark.parametrize("tasks", [1, 2, 8, 9, 32, 33])
def test_solvers_of_a_batch(emulator: Emulator, tasks: int) -> None:
    """A group's weights are those of its K alone; with random orders, of the order that the reference draws for the group."""
    K = grams(4, tasks)
    order = np.stack([np.random.default_rng(i).permutation(tasks) for i in range(tasks)])
    for given_order in (None, order):
        w, _ = emulator.pcgrad_weights(K, order=given_order, include_self=True, scale=0.5)
        for g in range(4):
            assert np.array_equal(w[g], emulator.pcgrad_weights(K[g], order=given_order, include_self=True, scale=0.5)[0])
    key = np.array([5, 2**33 + 1], dtype=np.int64)
    w, _ = emulator.pcgrad_weights(K, key=key)
    assert key.tolist() == [5, 2**33 + 2]
    for g in range(4):
        drawn = reference.random_order(torch.tensor([5, 2**33 + 1]), tasks, g).numpy()
        assert np.array_equal(w[g], emulator.pcgrad_weights(K[g], order=drawn)[0])


@pytest.mark.parametrize("tasks", [3, 33])
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_non_finite_gram_of_one_group(emulator: Emulator, tasks: int, bad: int) -> None:
    K = grams(4, tasks)
    expected, _ = emulator.pcgrad_weights(K, key=np.array([5, 9], dtype=np.int64))
    K[bad, -1, -1] = np.nan
    key = np.array([5, 9], dtype=np.int64)
    w, _ = emulator.pcgrad_weights(K, key=key)
    assert key.tolist() == [5, 9]
    assert np.isnan(w[bad]).all()
    assert np.array_equal(np.delete(w, bad, 0), np.delete(expected, bad, 0))


# --- through torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulator: Emulator, layout: str, dtype: torch.dtype) -> None:
    """Groups whose members are apart."""
    ops = emulator.operators
    for tasks in (1, 3, 9):
        if layout == "many_small" and tasks == 9:
            continue
        case = sample(layout, tasks, dtype)
        P = case.pieces
        groups = [g % 3 % P for g in range(P)]
        G = max(groups) + 1
        K, plain = ops.gram(case.grads, tasks, case.stacked, groups), reference.gram(case.grads, tasks, case.stacked, groups)
        assert K.shape == (G, tasks, tasks)
        norms = plain.diagonal(dim1=1, dim2=2).sqrt()
        assert bool(((K - plain).abs() <= TOLERANCES[dtype].gram * norms[:, :, None] * norms[:, None]).all())
        w = torch.randn(G, tasks, dtype=torch.float64)
        for accumulate in (False, True):
            out, alone = ([torch.ones_like(o) for o in case.empty()] for _ in range(2))
            ops.combine_(out, case.grads, w, case.stacked, accumulate, groups)
            for p in range(P):
                rows = [case.grads[p]] if case.stacked else case.rows(p)
                ops.combine_([alone[p]], rows, w[groups[p]].contiguous(), case.stacked, accumulate)
                assert torch.equal(out[p], alone[p])


def test_what_would_read_wild_memory_is_refused(emulator: Emulator) -> None:
    ops, rows = emulator.operators, [torch.ones(4) for _ in range(6)]
    w = torch.ones(2, 2, dtype=torch.float64)
    for groups, message in (([0, 2, 0], "found none in group 1"), ([0, 1], "one number a tensor"), ([0, -1, 0], "found -1")):
        with pytest.raises(RuntimeError, match=message):
            ops.gram(rows, 2, False, groups)
    for groups, weights in (([0, 2, 0], w), ([0, -1, 0], w), ([0, 0, 0], w[0]), (None, w)):
        with pytest.raises(RuntimeError, match="groups"):
            ops.combine_([torch.ones(4) for _ in range(3)], rows, weights, False, False, groups)
    with pytest.raises(RuntimeError, match=r"\[G, T, T\]"):
        ops.pcgrad_weights(torch.ones(2, 3, 2, dtype=torch.float64))
