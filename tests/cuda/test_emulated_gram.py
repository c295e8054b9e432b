"""The Gram kernels on the emulator against float64 products in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cuda_emulator import Emulator, Float64, Row, matrix, placed
from tolerances import DTYPES, TOLERANCES

ODD = (1, 3, 31, 257, 1000, 2049)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(tasks: int, numel: int, dtype: torch.dtype, offset: int = 0, seed: int = 0) -> list[Row]:
    return [placed(g, offset, dtype) for g in draw(tasks, numel, seed=seed)]


def check(emulator: Emulator, pieces: Sequence[Sequence[Row]], tolerance: float) -> Float64:
    K, G = emulator.gram(pieces), matrix(pieces)
    exact = G @ G.T
    norms = np.sqrt(exact.diagonal())
    assert np.array_equal(K, K.T)
    assert (np.abs(K - exact) <= tolerance * np.outer(norms, norms)).all()
    return K


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", range(1, 34))
def test_task_counts(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    check(emulator, [rows(tasks, 1003, dtype)], TOLERANCES[dtype].gram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tasks", [48, 49, 64, 100])
def test_more_tasks_than_a_panel(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    check(emulator, [rows(tasks, 2500, dtype)], TOLERANCES[dtype].gram)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [9, 17, 32, 33, 50])
def test_small_integers_give_k_exactly(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    """Nothing is rounded: every product is there once, and nothing else is."""
    for numel, seed in ((63, 0), (4097, 1)):
        numbers = torch.randint(-8, 9, (tasks, numel), generator=torch.Generator().manual_seed(seed)).double()
        for piece in (
            [placed(g, 3, dtype) for g in numbers],
            [placed(g, t % 3, dtype) if t != 4 else None for t, g in enumerate(numbers)],
        ):
            G = matrix([piece])
            assert np.array_equal(emulator.gram([piece]), G @ G.T)


@pytest.mark.parametrize("seed", range(20))
def test_tensor_cores_stay_within_the_bound_of_short_runs(emulator: Emulator, seed: int) -> None:
    """256 roundings of a float32 sum, relative to the sum of absolute products; and the same bits again."""
    tasks = 17 + seed % 16
    for dtype in (torch.bfloat16, torch.float16):
        pieces = [rows(tasks, numel, dtype, p, seed) for p, numel in enumerate((257, 1000 + seed))]
        K, G = emulator.gram(pieces), matrix(pieces)
        assert (np.abs(K - G @ G.T) <= 256 * 2.0**-24 * (np.abs(G) @ np.abs(G).T)).all()
        assert np.array_equal(K, K.T)
        assert np.array_equal(K, emulator.gram(pieces))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 3, 8, 9, 20, 33])
def test_sizes(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    for numel in ODD:
        check(emulator, [rows(tasks, numel, dtype)], TOLERANCES[dtype].gram)


@pytest.mark.parametrize("tasks", [2, 5, 8, 11, 32])
def test_many_chunks(emulator: Emulator, tasks: int) -> None:
    check(emulator, [rows(tasks, 65537, torch.float32)], TOLERANCES[torch.float32].gram)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [2, 10, 18])
def test_every_alignment(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    """All rows equally far from a 16-byte border: vectors after a head. Otherwise: element by element."""
    for numel in (5, 300):
        for offset in range(1, 9):
            check(emulator, [rows(tasks, numel, dtype, offset)], TOLERANCES[dtype].gram)
        apart: list[Row] = [placed(g, t % 3, dtype) for t, g in enumerate(draw(tasks, numel))]
        check(emulator, [apart], TOLERANCES[dtype].gram)


@pytest.mark.parametrize("tasks", [3, 8, 12, 20, 40])
def test_absent_rows_and_several_pieces(emulator: Emulator, tasks: int) -> None:
    """Absent rows are zeros; the pieces' types may differ, with float64 among them or not."""
    for dtypes in (DTYPES[2:], DTYPES[1:], DTYPES):
        pieces = []
        for p, numel in enumerate((700, 1, 64, 2050, 33, 8)):
            piece = rows(tasks, numel, dtypes[p % len(dtypes)], p % 3, seed=p)
            pieces.append([None if (t + p) % 4 == 1 and t else row for t, row in enumerate(piece)])
        pieces.append([None if t else row for t, row in enumerate(rows(tasks, 50, torch.float32))])
        K = check(emulator, pieces, TOLERANCES[torch.float32].gram)
        assert (K.diagonal() > 0).all()


def test_a_position_and_a_task_without_gradients(emulator: Emulator) -> None:
    piece = rows(3, 100, torch.float32)
    alone = emulator.gram([piece])
    with_gaps = emulator.gram([[None] * 4, [piece[0], None, piece[1], piece[2]], [None] * 4])
    assert np.array_equal(with_gaps[np.ix_([0, 2, 3], [0, 2, 3])], alone)
    assert not with_gaps[1].any()


def test_no_coordinates(emulator: Emulator) -> None:
    for tasks in (2, 9, 33):
        assert not emulator.gram([[torch.empty(0) for _ in range(tasks)]]).any()


@pytest.mark.parametrize("pieces", [80, 700])
def test_tables_too_large_for_a_launchs_parameters(emulator: Emulator, pieces: int) -> None:
    for tasks in (4, 9):
        check(emulator, [rows(tasks, 1 + p % 7, torch.float32, seed=p) for p in range(pieces)], TOLERANCES[torch.float32].gram)


@pytest.mark.parametrize("tasks", [1, 8, 9, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_of_float32_additions_are_short(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    """One square of 2^24, then ones. A float32 sum that has met 2^24 loses every 1 that follows, so K tells how long runs are."""
    numel = 200_000 if tasks < 9 else 40_000
    values = torch.ones(numel, dtype=torch.float64)
    values[0] = 2.0**12
    K = emulator.gram([[placed(values, 0, dtype) for _ in range(tasks)]])
    lost = 2.0**24 + numel - 1 - K
    assert (lost >= 0).all()
    assert (lost <= 256).all()


@pytest.mark.parametrize("tasks", [4, 17])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_number_reaches_its_row_of_k_alone(emulator: Emulator, tasks: int, value: float) -> None:
    for at in (0, 777, 1002):
        piece = rows(tasks, 1003, torch.float32)
        bad = piece[1]
        assert bad is not None
        bad[at] = value
        expected = np.zeros((tasks, tasks), dtype=bool)
        expected[1] = expected[:, 1] = True
        assert np.array_equal(~np.isfinite(emulator.gram([piece])), expected)
