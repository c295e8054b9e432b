"""PCGrad in one launch on the emulator: the bits of the separate launches, whatever stays on chip, under every schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cuda_emulator import Device, Emulator, Row, placed, untouched_around
from tolerances import DTYPES, TOLERANCES
from torch import Tensor

SEPARATE = Device(cooperative=False)
# What the same blocks keep of their vectors: all, some, none.
ALL = Device(shared_multiprocessor=1 << 20, shared_block=1 << 20)
NONE = Device(shared_multiprocessor=18 << 10)
KEEPS = ("all", "some", "none")


def device(keeps: str, tasks: int) -> Device:
    """Of two blocks on a multiprocessor each has room for all it reads, for three slots, or for nothing."""
    some = Device(shared_multiprocessor=2 * (9 + 3 * 4 * tasks) << 10)
    return {"all": ALL, "some": some, "none": NONE}[keeps]


@dataclass
class Result:
    """What pcgrad_ gave, and how many launches it took beside those that write a table to the device."""

    K: Tensor
    w: Tensor
    out: list[Tensor]
    launches: int

    def same(self, other: Result) -> bool:
        """To the bit, NaN included."""
        mine, theirs = [self.K, self.w, *self.out], [other.K, other.w, *other.out]
        return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(mine, theirs, strict=True))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(tasks: int, numel: int, dtype: torch.dtype = torch.float32, offset: int = 0, seed: int = 0) -> list[Row]:
    """Rows with many conflicts."""
    G = draw(tasks, numel, seed=seed) - 0.5 * draw(numel, seed=seed + 1)
    return [placed(g, offset, dtype) for g in G]


def outputs(pieces: Sequence[Sequence[Row]], offset: int = 0, dtype: torch.dtype | None = None) -> list[Tensor]:
    """One a piece, with numbers to be overwritten or added to."""
    present = [next(row for row in piece if row is not None) for piece in pieces]
    return [placed(draw(row.numel(), seed=9), offset, dtype or row.dtype) for row in present]


def run(
    emulator: Emulator,
    device: Device,
    pieces: Sequence[Sequence[Row]],
    out: list[Tensor],
    key: Tensor | None = None,
    order: Tensor | None = None,
    accumulate: bool = False,
) -> Result:
    tasks = len(pieces[0])
    grads = [pieces[p][t] for t in range(tasks) for p in range(len(pieces))]
    with emulator.device(device), emulator.launches() as launches:
        K, w = emulator.operators.pcgrad_(out, grads, tasks, False, order, key, False, 0.5, accumulate)
    return Result(K, w, out, launches.total() - launches["upload_slice"])


def pieces_of_all_kinds(tasks: int, dtype: torch.dtype) -> list[list[Row]]:
    """Several chunks; off the 16-byte border, together and each by itself; absent rows; a few coordinates."""
    apart: list[Row] = [placed(g, t % 3, dtype) for t, g in enumerate(draw(tasks, 700, seed=3))]
    pieces = [rows(tasks, 13_001, dtype), rows(tasks, 2500, dtype, 1, 1), apart, rows(tasks, 3, dtype), rows(tasks, 4100, dtype)]
    pieces[4] = [None if t % 3 == 1 else row for t, row in enumerate(pieces[4])]
    return pieces


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("tasks", range(1, 9))
def test_the_bits_of_separate_launches(emulator: Emulator, tasks: int, dtype: torch.dtype) -> None:
    pieces = pieces_of_all_kinds(tasks, dtype)
    separate = run(emulator, SEPARATE, pieces, outputs(pieces), torch.tensor([3, 4]))
    assert separate.launches == 3
    for keeps in KEEPS:
        key = torch.tensor([3, 4])
        fused = run(emulator, device(keeps, tasks), pieces, outputs(pieces), key)
        assert fused.launches == 1
        assert fused.same(separate)
        assert key.tolist() == [3, 5]
        assert all(untouched_around(target) for target in fused.out)


@pytest.mark.parametrize("tasks", [2, 5])
def test_against_float64(emulator: Emulator, tasks: int) -> None:
    for dtype in DTYPES[1:]:
        piece = rows(tasks, 9001, dtype)
        result = run(emulator, device("some", tasks), [piece], outputs([piece]))
        G = torch.stack([row.double() for row in piece if row is not None])
        exact, norms = G @ G.T, G.norm(dim=1)
        assert bool(((result.K - exact).abs() <= TOLERANCES[dtype].gram * torch.outer(norms, norms)).all())
        combined, magnitude = result.w @ G, result.w.abs() @ G.abs()
        allowed = TOLERANCES[dtype].rounding * combined.abs() + TOLERANCES[dtype].combine * magnitude + 1e-7
        assert bool(((result.out[0].double() - combined).abs() <= allowed).all())


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("keeps", KEEPS)
def test_types_and_borders_of_the_output_may_differ(emulator: Emulator, keeps: str, accumulate: bool) -> None:
    """Where it does not lie on the gradients' borders, no vector of the piece is kept."""
    pieces = [rows(3, 3001, dtype, p, p) for p, dtype in enumerate(DTYPES[1:])]
    for dtype in DTYPES[1:]:
        for offset in (0, 1, 2):
            separate = run(emulator, SEPARATE, pieces, outputs(pieces, offset, dtype), None, None, accumulate)
            fused = run(emulator, device(keeps, 3), pieces, outputs(pieces, offset, dtype), None, None, accumulate)
            assert (fused.launches, separate.launches) == (1, 3)
            assert fused.same(separate)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("keeps", KEEPS)
def test_the_output_may_be_a_gradient(emulator: Emulator, keeps: str, accumulate: bool) -> None:
    for tasks in (3, 8):
        apart, aliased = rows(tasks, 15_001), rows(tasks, 15_001)
        assert apart[1] is not None
        assert aliased[1] is not None
        separate = run(emulator, SEPARATE, [apart], [apart[1].clone()], None, None, accumulate)
        assert run(emulator, device(keeps, tasks), [aliased], [aliased[1]], None, None, accumulate).same(separate)


@pytest.mark.parametrize("tasks", [2, 7])
def test_more_chunks_than_shares(emulator: Emulator, tasks: int) -> None:
    """Blocks then go through several chunks of a share; the table is too large for a launch's parameters, and written before."""
    pieces = [rows(tasks, 1 + p % 9, seed=p) for p in range(1040)]
    separate = run(emulator, SEPARATE, pieces, outputs(pieces))
    for keeps in KEEPS:
        fused = run(emulator, device(keeps, tasks), pieces, outputs(pieces))
        assert (fused.launches, separate.launches) == (1, 3)
        assert fused.same(separate)


@pytest.mark.parametrize("tasks", [1, 2, 4, 5, 8])
def test_what_stays_on_chip_is_read_once(emulator: Emulator, tasks: int) -> None:
    """(T + 1) N b bytes of traffic, or (2 T + 1) N b where nothing is kept: whole vectors here, as edges are read again."""
    numel = 16_384
    piece = rows(tasks, numel)
    traffic = {}
    for keeps in KEEPS:
        before = emulator.traffic()
        assert run(emulator, device(keeps, tasks), [piece], outputs([piece])).launches == 1
        traffic[keeps] = (emulator.traffic() - before) / (4 * numel)
    assert traffic["all"] == tasks + 1
    assert tasks + 1 < traffic["some"] < 2 * tasks + 1
    assert traffic["none"] == 2 * tasks + 1


def test_no_coordinates(emulator: Emulator) -> None:
    piece: list[Row] = [torch.empty(0) for _ in range(3)]
    key = torch.tensor([1, 2])
    result = run(emulator, Device(), [piece], [torch.empty(0)], key)
    assert result.launches == 1
    assert not result.K.any()
    assert result.w.tolist() == [0.5, 0.5, 0.5]
    assert key.tolist() == [1, 3]


@pytest.mark.parametrize("keeps", KEEPS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_reaches_everything_but_the_key(emulator: Emulator, keeps: str, value: float) -> None:
    for at in (0, 5000, 13_000):
        piece, key = rows(4, 13_001), torch.tensor([5, 9])
        assert piece[2] is not None
        piece[2][at] = value
        result = run(emulator, device(keeps, 4), [piece], outputs([piece]), key)
        assert result.launches == 1
        assert result.w.isnan().all()
        assert result.out[0].isnan().all()
        assert key.tolist() == [5, 9]


def test_orders(emulator: Emulator) -> None:
    piece = rows(5, 3000)
    order = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    separate = run(emulator, SEPARATE, [piece], outputs([piece]), order=order)
    assert run(emulator, Device(), [piece], outputs([piece]), order=order).same(separate)
    order[4, 0] = 5
    refused = run(emulator, Device(), [piece], outputs([piece]), order=order)
    assert refused.w.isnan().all()
    assert refused.out[0].isnan().all()
    assert refused.K.isfinite().all()


@pytest.mark.parametrize("tasks", [3, 8])
def test_schedules_do_not_change_a_bit(emulator: Emulator, tasks: int) -> None:
    pieces = pieces_of_all_kinds(tasks, torch.float32)
    expected = run(emulator, SEPARATE, pieces, outputs(pieces), torch.tensor([3, 4]))
    for seed in range(1, 21):
        where = device(KEEPS[seed % 3], tasks)
        if seed % 4 == 0:
            where = replace(where, multiprocessors=2, blocks=1)
        with emulator.schedule(seed):
            assert run(emulator, where, pieces, outputs(pieces), torch.tensor([3, 4])).same(expected)


def test_more_tasks_and_float64_take_several_launches(emulator: Emulator) -> None:
    for tasks, dtype, launches in ((8, torch.float32, 1), (9, torch.float32, 4), (3, torch.float64, 3)):
        piece = rows(tasks, 3000, dtype)
        assert run(emulator, Device(), [piece], outputs([piece])).launches == launches
    piece = rows(3, 3000)
    assert run(emulator, Device(), [piece], outputs([piece], dtype=torch.float64)).launches == 3


def test_a_device_that_refuses_is_not_asked_again(emulator: Emulator) -> None:
    """Where other processes have a part of it, say: several launches do, with the same bits."""
    piece = rows(3, 5001, torch.float32)
    with emulator.device(Device()):  # not the one that other tests know
        expected = run(emulator, SEPARATE, [piece], outputs([piece]))
        with emulator.device(Device()), emulator.shared_with_others():
            for attempts in (1, 0):
                out = outputs([piece])
                with emulator.launches() as launches:
                    K, w = emulator.operators.pcgrad_(out, piece, 3, False, None, None, False, 0.5, False)
                assert launches.total() == 3 + attempts
                assert Result(K, w, out, 3).same(expected)
