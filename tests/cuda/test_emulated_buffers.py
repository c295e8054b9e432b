"""The CUDA kernels of buffers on the emulator: against float64, under other schedules, and what they may not touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulator import Emulator, placed, untouched_around
from ops.buffer_checks import check, check_averages, check_risks, check_scaled_risks
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from tolerances import DTYPES
from torch import Tensor

ODD = (1, 3, 31, 257, 1000, 2049)
RATE = torch.tensor(0.3, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", range(1, 34))
def test_task_counts(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    check(emulator.operators, Sample(list(maker(dtype)(tasks, 1003)), tasks), cuda=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulator: Emulator, layout: str, dtype: torch.dtype) -> None:
    for tasks in (1, 2, 5, 9):
        for buffer_dtype in (torch.float32, torch.float64):
            check(emulator.operators, sample(layout, tasks, dtype), buffer_dtype, cuda=True)


@pytest.mark.parametrize("tasks", [1, 3, 8, 9])
def test_sizes(emulator: Emulator, tasks: int) -> None:
    for numel in ODD:
        check(emulator.operators, Sample(list(maker(torch.float32)(tasks, numel)), tasks), cuda=True)


@pytest.mark.parametrize("tasks", [2, 8, 11])
def test_many_chunks(emulator: Emulator, tasks: int) -> None:
    check(emulator.operators, Sample(list(maker(torch.float32)(tasks, 65_537)), tasks), cuda=True)


@pytest.mark.parametrize("tasks", [2, 9])
@pytest.mark.parametrize("buffer_dtype", [torch.float32, torch.float64], ids=str)
def test_every_alignment(emulator: Emulator, tasks: int, buffer_dtype: torch.dtype) -> None:
    """Gradients and buffers equally far from a 16-byte border, in groups of a buffer's 16 bytes, or not; NaNs around them stay."""
    for dtype in DTYPES:
        for numel in (5, 304):
            for offset in range(5):
                for buffer_offset in (0, offset):
                    rows = [placed(g, offset, dtype) for g in maker(torch.float64)(tasks, numel)]
                    given = Sample(list(rows), tasks)
                    for run in (check_averages, check_risks):
                        buffer = placed(maker(torch.float64, seed=3)(tasks, numel).abs(), buffer_offset, buffer_dtype)
                        run(emulator.operators, given, [buffer.view(tasks, numel)], True)
                        assert untouched_around(buffer)


def test_types_may_differ(emulator: Emulator) -> None:
    """Between the tasks of a position, and between positions, float64 among them or not."""
    for dtypes in (DTYPES, DTYPES[1:]):
        makers = [maker(dtype, seed=seed) for seed, dtype in enumerate(dtypes)]
        shapes = ((130,), (9, 9), ())
        entries: list[Tensor | None] = [makers[(t + p) % len(makers)](*shape) for t in range(5) for p, shape in enumerate(shapes)]
        entries[4] = None
        check(emulator.operators, Sample(entries, 5), cuda=True)


@pytest.mark.parametrize("tasks", [4, 9])
def test_tables_too_large_for_a_launchs_parameters(emulator: Emulator, tasks: int) -> None:
    make = maker(torch.float32)
    check(emulator.operators, Sample([make(1 + p % 7) for _ in range(tasks) for p in range(120)], tasks), cuda=True)


def calls(tasks: int) -> list[tuple[str, tuple[Any, ...]]]:
    return [("ema_gram_", (weights_of(tasks), RATE)), ("excess_risk_", ())]


@pytest.mark.parametrize("tasks", [3, 9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_never_enters_a_buffer(emulator: Emulator, tasks: int, value: float) -> None:
    for name, more in calls(tasks):
        for at in (0, 777, 1029):
            G, buffer = maker(torch.float32)(tasks, 1030), torch.ones(tasks, 1030)
            G[1, at] = value
            result = getattr(emulator.operators, name)([buffer], [G], tasks, True, *more)
            assert buffer.isfinite().all()
            assert float(buffer[1, at]) == 1.0
            assert not torch.equal(buffer[1], torch.ones(1030))
            bad = torch.zeros_like(result, dtype=torch.bool)
            bad[1] = True
            if result.dim() == 2:
                bad[:, 1] = True
            assert torch.equal(result.isnan(), bad)


@pytest.mark.parametrize("tasks", [3, 9])
@pytest.mark.parametrize("numel", [0, 2000])
def test_where_valid_is_false_nothing_is_written(emulator: Emulator, tasks: int, numel: int) -> None:
    for valid in (False, True):
        for name, more in calls(tasks):
            G, buffer = maker(torch.float32)(tasks, numel), torch.ones(tasks, numel)
            result = getattr(emulator.operators, name)([buffer], [G], tasks, True, *more, torch.tensor(valid))
            assert bool(result.isnan().all()) is not valid
            assert torch.equal(buffer, torch.ones_like(buffer)) is (not valid or numel == 0)


def test_excess_risks_where_squares_leave_float32(emulator: Emulator) -> None:
    for scale in (1e-30, 1e30):
        G = maker(torch.float32)(2, 300) * scale
        buffer = torch.zeros(2, 300)
        for _ in range(2):
            e = emulator.operators.excess_risk_([buffer], [G], 2, True)
        torch.testing.assert_close(buffer, G.abs() * 2**0.5, rtol=1e-6, atol=0)
        torch.testing.assert_close(e, G.double().abs().sum(1) / 2**0.5, rtol=1e-6, atol=0)


def test_what_would_read_wild_memory_is_refused(emulator: Emulator) -> None:
    rows = [torch.ones(4), torch.ones(4)]
    for buffers, message in (
        ([torch.ones(2, 5)], "one shape"),
        ([torch.ones(3, 4)], "must be"),
        ([torch.ones(2, 4)] * 2, "one tensor a gradient"),
        ([torch.ones(2, 4, dtype=torch.float16)], "float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            emulator.operators.ema_gram_(buffers, rows, 2, False, weights_of(2), RATE)
    with pytest.raises(RuntimeError, match="valid must be one bool"):
        emulator.operators.excess_risk_([torch.ones(2, 4)], rows, 2, False, torch.ones(1))


def test_risks_over_the_whole_range_of_float64(emulator: Emulator) -> None:
    check_scaled_risks(emulator.operators)
