"""The combine kernel on the emulator against float64 sums in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cuda_emulator import Emulator, Float64, Row, placed, untouched_around
from tolerances import DTYPES, TOLERANCES
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(tasks: int, numel: int, dtype: torch.dtype, offset: int = 0, seed: int = 0) -> list[Row]:
    return [placed(g, offset, dtype) for g in draw(tasks, numel, seed=seed)]


def weights(tasks: int) -> Float64:
    return draw(tasks, seed=99).numpy()


def outputs(pieces: Sequence[Sequence[Row]], dtype: torch.dtype, offset: int = 0) -> list[Tensor]:
    return [placed(draw(next(r.numel() for r in piece if r is not None), seed=7), offset, dtype) for piece in pieces]


def assert_combined(out: Tensor, piece: Sequence[Row], w: Float64, before: Tensor | None = None) -> None:
    present = [(w[t], row.double().numpy()) for t, row in enumerate(piece) if row is not None]
    exact, magnitude = np.zeros(out.numel()), np.zeros(out.numel())
    if before is not None:
        exact, magnitude = before.double().numpy().copy(), before.double().abs().numpy()
    for x, row in present:
        exact = exact + x * row
        magnitude = magnitude + np.abs(x * row)
    float64 = out.dtype == torch.float64 or any(row is not None and row.dtype == torch.float64 for row in piece)
    summing = TOLERANCES[torch.float64 if float64 else torch.float32].combine
    allowed = TOLERANCES[out.dtype].rounding * np.abs(exact) + summing * magnitude + 1e-7 * (out.dtype == torch.float16)
    assert (np.abs(out.double().numpy() - exact) <= allowed).all()
    assert untouched_around(out)


def check(emulator: Emulator, pieces: Sequence[Sequence[Row]], out_dtype: torch.dtype, offset: int = 0) -> None:
    tasks = len(pieces[0])
    w = weights(tasks)
    for accumulate in (False, True):
        out = outputs(pieces, out_dtype, offset)
        before = [o.clone() for o in out]
        emulator.combine(out, pieces, w, accumulate)
        for target, piece, old in zip(out, pieces, before, strict=True):
            assert_combined(target, piece, w, old if accumulate else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [*range(1, 18), 33])
def test_task_counts(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    check(emulator, [rows(tasks, 1003, dtype)], dtype)


@pytest.mark.parametrize("numel", [1, 7, 31, 257, 2047, 2048, 2049, 65537])
def test_sizes(emulator: Emulator, numel: int) -> None:
    for dtype in DTYPES:
        check(emulator, [rows(3, numel, dtype)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_and_alignments(emulator: Emulator, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    for numel in (4, 301):
        for offset in (0, 1, 3, 4, 5):
            for out_offset in (0, 1, offset):
                check(emulator, [rows(3, numel, dtype, offset)], out_dtype, out_offset)
        apart: list[Row] = [placed(g, t, dtype) for t, g in enumerate(draw(3, numel))]
        check(emulator, [apart], out_dtype)


def test_absent_rows_and_several_pieces(emulator: Emulator) -> None:
    for tasks in (2, 5, 9, 20):
        pieces = []
        for p, numel in enumerate((700, 1, 64, 2050, 33)):
            piece = rows(tasks, numel, DTYPES[1 + p % 3], p % 3, seed=p)
            pieces.append([None if (t + p) % 4 == 1 and t else row for t, row in enumerate(piece)])
        check(emulator, pieces, torch.float32)


def test_a_position_without_gradients_is_zeroed(emulator: Emulator) -> None:
    for numel, offset in ((300, 0), (301, 1), (3000, 0)):
        for accumulate in (False, True):
            out = [placed(draw(numel), offset, torch.float32)]
            before = out[0].clone()
            emulator.combine(out, [[None, None, None]], np.array([1.0, 2.0, np.nan]), accumulate)
            assert torch.equal(out[0], before if accumulate else torch.zeros(numel))
            assert untouched_around(out[0])


@pytest.mark.parametrize("row", [0, 2, 8])
@pytest.mark.parametrize("offset", [0, 1])
def test_out_may_be_a_row(emulator: Emulator, row: int, offset: int) -> None:
    for accumulate in (False, True):
        for tasks in (3, 9):
            if row >= tasks:
                continue
            piece, apart = rows(tasks, 5001, torch.float32, offset), rows(tasks, 5001, torch.float32, offset)
            w = weights(tasks)
            target, copy = piece[row], apart[row]
            assert target is not None
            assert copy is not None
            out = placed(copy, offset)
            emulator.combine([out], [apart], w, accumulate)
            emulator.combine([target], [piece], w, accumulate)
            assert torch.equal(target, out)
            assert untouched_around(target)


def test_tables_too_large_for_a_launchs_parameters(emulator: Emulator) -> None:
    check(emulator, [rows(4, 1 + p % 7, torch.float32, seed=p) for p in range(300)], torch.float32)


def test_a_bad_weight_reaches_every_coordinate_of_its_row(emulator: Emulator) -> None:
    piece = rows(3, 1000, torch.float32)
    w = np.array([1.0, np.nan, 1.0])
    out = outputs([piece], torch.float32)
    emulator.combine(out, [piece], w)
    assert out[0].isnan().all()
    emulator.combine(out, [[piece[0], None, piece[2]]], w)  # an absent row adds nothing
    assert out[0].isfinite().all()
