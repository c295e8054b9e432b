"""The same bits under every schedule of threads; and every barrier is needed: without it, some schedule gives another result."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuda_emulator import Device, EmulationError, Emulator, Float64, Row, barriers, placed
from ops.coordinatewise_calls import calls
from ops.samples import Sample
from ops.solver_calls import SOLVER_METHODS, solver_call

SEEDS = range(1, 21)


def rows(tasks: int, numel: int, dtype: torch.dtype = torch.float32) -> list[Row]:
    return [placed(g, dtype=dtype) for g in torch.randn(tasks, numel, generator=torch.Generator().manual_seed(tasks))]


def gram_of_few(emulator: Emulator) -> list[Float64]:
    return [emulator.gram([rows(3, 5001)])]


def gram_of_more(emulator: Emulator) -> list[Float64]:
    return [emulator.gram([rows(12, 3001)])]


def gram_of_many(emulator: Emulator) -> list[Float64]:
    return [emulator.gram([rows(34, 700)])]


def gram_of_16_bits(emulator: Emulator) -> list[Float64]:
    return [emulator.gram([rows(20, 3001, torch.bfloat16)]), emulator.gram([rows(34, 700, torch.float16)])]


def solver(emulator: Emulator) -> list[Float64]:
    """Shared and global memory, all kinds of orders, a refused K and a refused order."""
    results = []
    for tasks in (5, 20, 34):
        G = np.random.default_rng(tasks).normal(size=(tasks, tasks)) - 0.3
        key = np.array([1, 2], dtype=np.int64)
        results += [emulator.pcgrad_weights(G @ G.T)[0], emulator.pcgrad_weights(G @ G.T, key=key)[0]]
        ends_in_itself = (np.arange(tasks)[:, None] + np.arange(1, tasks + 1)) % tasks
        results += [emulator.pcgrad_weights(G @ G.T, order=ends_in_itself)[0]]
        ends_in_itself[0, 0] = -1
        results += [emulator.pcgrad_weights(G @ G.T, order=ends_in_itself)[0]]
        K = np.eye(tasks)
        K[-1, -1] = np.nan
        results += [emulator.pcgrad_weights(K, key=key)[0], key.astype(np.float64)]
    return results


def solver_of_groups(emulator: Emulator) -> list[Float64]:
    """Groups draw from one key, which waits for the last of them; in the second call it stays."""
    results = []
    for tasks in (5, 34):
        G = np.random.default_rng(tasks).normal(size=(3, tasks, tasks)) - 0.3
        K = G @ G.transpose(0, 2, 1)
        key = np.array([1, 2], dtype=np.int64)
        results += [emulator.pcgrad_weights(K, key=key)[0], key.astype(np.float64)]
        K[1, -1, -1] = np.nan
        results += [emulator.pcgrad_weights(K, key=key)[0], key.astype(np.float64)]
    return results


def grams_of_groups(emulator: Emulator) -> list[Float64]:
    return [emulator.gram([rows(tasks, n) for n in (700, 2049, 5, 3001)], [2, 0, 1, 1]) for tasks in (3, 12)]


def fused_solver(emulator: Emulator) -> list[Float64]:
    return list(emulator.pcgrad_weights(pieces=[rows(5, 5001)], key=np.array([3, 4], dtype=np.int64)))


def surgery_in_one_launch(emulator: Emulator) -> list[Float64]:
    """Blocks with several shares each, of which the one that solves may come last."""
    piece = rows(5, 20_001)
    out = [torch.zeros(20_001)]
    try:
        with emulator.launches() as launches:
            K, w = emulator.operators.pcgrad_(out, piece, 5, False, None, torch.tensor([3, 4]))
    except RuntimeError as error:  # what the emulator finds comes through torch
        raise EmulationError(str(error)) from error
    assert launches.total() == 1
    return [K.numpy(), w.numpy(), out[0].double().numpy()]


def solvers(emulator: Emulator) -> list[Float64]:
    """Every solver that the registry knows, in shared and in device memory; and with a K that is not finite."""
    results = []
    for name in SOLVER_METHODS:
        for tasks in (5, 75) if name == SOLVER_METHODS[0] else (5,):
            call = replace(solver_call(name, tasks, groups=2), key=torch.tensor([3, 4]))
            broken = call.gram.clone()
            broken[0, 1, 1] = torch.nan
            for gram in (call.gram, broken):
                results += [part.numpy() for part in call.on(gram).run(emulator.operators) if part is not None]
    return results


def combined(emulator: Emulator) -> list[Float64]:
    piece = rows(5, 5001)
    target = piece[2]
    assert target is not None
    emulator.combine([target], [piece], np.arange(5.0) - 2, accumulate=True)
    return [target.double().numpy()]


def coordinatewise(emulator: Emulator) -> list[Float64]:
    results = []
    for tasks in (5, 20, 34):
        given = Sample(rows(tasks, 1001), tasks)
        for call in calls(given):
            out = given.empty()
            call.run(emulator.operators, given, out)
            results.append(out[0].double().numpy())
    return results


def buffers(emulator: Emulator) -> list[Float64]:
    """Averages with K and excess risks, in one pass for all tasks and in a pass a task."""
    results = []
    for tasks in (3, 9):
        G = torch.randn(tasks, 5001, generator=torch.Generator().manual_seed(tasks))
        y, r = torch.ones(tasks, 5001), torch.ones(tasks, 5001)
        scales, rate = torch.arange(tasks, dtype=torch.float64) - 1, torch.tensor(0.3, dtype=torch.float64)
        try:
            results += [emulator.operators.ema_gram_([y], [G], tasks, True, scales, rate).numpy(), y.double().numpy()]
            results += [emulator.operators.excess_risk_([r], [G], tasks, True).numpy(), r.double().numpy()]
        except RuntimeError as error:  # what the emulator finds comes through torch
            raise EmulationError(str(error)) from error
    return results


def samples(emulator: Emulator) -> list[Float64]:
    """By sample: fused and apart, whole and in windows, all kinds of orders, a refused order, and samples that are not finite."""
    ops, results = emulator.operators, []
    for tasks, size in ((3, 200), (4, 3001), (12, 200), (34, 60)):
        G = torch.randn(tasks, 3, size, generator=torch.Generator().manual_seed(tasks)) - 0.3
        broken = G.clone()
        broken[-1, 1, -1] = torch.nan
        ends_in_itself = (torch.arange(tasks)[:, None] + torch.arange(1, tasks + 1)) % tasks
        refused = ends_in_itself.clone()
        refused[0, 0] = -1
        for given, order, key in (
            (G, None, torch.tensor([1, 2])),
            (G, ends_in_itself, None),
            (G, refused, None),
            (broken, None, torch.tensor([1, 2])),
        ):
            out, again = (torch.zeros(3, size) for _ in range(2))
            try:
                with emulator.device(Device(shared_block=48 << 10)):
                    K, w = ops.pcgrad_samples_([out], [given], tasks, True, order, key, False, 1.0, False)
                    ops.combine_samples_([again], [given], w.nan_to_num(), True)
            except RuntimeError as error:  # what the emulator finds comes through torch
                raise EmulationError(str(error)) from error
            results += [part.double().numpy() for part in (K, w, out, again, *([] if key is None else [key]))]
    return results


Run = Callable[[Emulator], list[Float64]]
RUNS: tuple[Run, ...] = (
    gram_of_few,
    gram_of_more,
    gram_of_many,
    gram_of_16_bits,
    solver,
    solvers,
    solver_of_groups,
    grams_of_groups,
    fused_solver,
    surgery_in_one_launch,
    combined,
    coordinatewise,
    buffers,
    samples,
)


def same(actual: list[Float64], expected: list[Float64]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_schedules_do_not_change_a_bit(emulator: Emulator, run: Run) -> None:
    expected = run(emulator)
    for seed in SEEDS:
        with emulator.schedule(seed):
            assert same(run(emulator), expected)


@pytest.fixture(scope="module")
def runs_by_barrier(emulator: Emulator) -> dict[str, list[tuple[Run, list[Float64]]]]:
    """Which runs come to a barrier, and their results."""
    found: dict[str, list[tuple[Run, list[Float64]]]] = {}
    for run in RUNS:
        emulator.reached()
        expected = run(emulator)
        for barrier in emulator.reached():
            found.setdefault(barrier, []).append((run, expected))
    return found


@pytest.mark.parametrize("barrier", barriers())
def test_every_barrier_is_needed(
    emulator: Emulator, runs_by_barrier: dict[str, list[tuple[Run, list[Float64]]]], barrier: str
) -> None:
    for run, expected in runs_by_barrier.get(barrier, []):
        for seed in SEEDS:
            with emulator.schedule(seed, barrier):
                try:
                    if not same(run(emulator), expected):
                        return
                except EmulationError:
                    return
    pytest.fail(f"no schedule notices that the barrier {barrier!r} is gone")


@pytest.mark.parametrize("place", [0, 1, 2], ids=["start", "read", "updated"])
def test_every_barrier_of_the_shared_row_is_needed(emulator: Emulator, place: int) -> None:
    """pcgrad_row is one text for CPU and CUDA; here a warp runs it without one of its three barriers."""
    tasks = 40
    G = np.random.default_rng(0).normal(size=(tasks, tasks)) - 0.3
    K = np.ascontiguousarray(G @ G.T)
    order = np.arange(tasks, dtype=np.int32)

    def run(omit: int) -> Float64:
        c = np.full(tasks, np.nan)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (K, order, c)]
        emulator.call("gs_row_without", tasks, pointers[0], 1, pointers[1], omit, pointers[2])
        return c

    expected = run(-1)
    noticed = []
    for seed in SEEDS:
        with emulator.schedule(seed):
            assert np.array_equal(run(-1), expected)
            noticed.append(not np.array_equal(run(place), expected))
    assert any(noticed)
