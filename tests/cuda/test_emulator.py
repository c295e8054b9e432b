"""The emulator itself: barriers hold, schedules differ, and what it promises to find is found."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_emulator import Device, EmulationError, Emulator, barriers

SEEDS = range(8)


def relay(emulator: Emulator, rounds: int = 9, leave_early: bool = False) -> list[int]:
    out = (ctypes.c_int * 64)()
    emulator.call("gs_relay", rounds, int(leave_early), out)
    return list(out)


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_hold_under_every_schedule(emulator: Emulator, seed: int) -> None:
    with emulator.schedule(seed):
        assert relay(emulator) == [(t + 9) % 64 for t in range(64)]


@pytest.mark.parametrize("removed", ["relay_written", "relay_read"])
def test_a_missing_barrier_shows(emulator: Emulator, removed: str) -> None:
    right = relay(emulator)
    wrong = []
    for seed in SEEDS:
        with emulator.schedule(seed, removed):
            wrong.append(relay(emulator) != right)
    assert sum(wrong) >= len(SEEDS) - 2


def test_schedules_differ_and_repeat(emulator: Emulator) -> None:
    seen = []
    for seed in (1, 2, 1):
        with emulator.schedule(seed, "relay_written"):
            seen.append(relay(emulator))
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]


def test_a_thread_that_leaves_its_block_waiting_is_a_deadlock(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="deadlock"):
        relay(emulator, leave_early=True)
    assert relay(emulator) == [(t + 9) % 64 for t in range(64)], "and the next launch is none the worse for it"


def relay_of_blocks(
    emulator: Emulator, blocks: int = 5, leave_early: bool = False, cooperative: bool = True, shared_bytes: int = 0
) -> list[int]:
    """All blocks of 40 threads pass numbers on, two blocks further in all."""
    cells, out = (ctypes.c_int * (blocks * 40))(), (ctypes.c_int * (blocks * 40))()
    emulator.call("gs_relay_of_blocks", blocks, 40, 2, int(leave_early), int(cooperative), shared_bytes, cells, out)
    return list(out)


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_of_the_grid_hold_under_every_schedule(emulator: Emulator, seed: int) -> None:
    with emulator.schedule(seed):
        assert relay_of_blocks(emulator) == [(t + 80) % 200 for t in range(200)]


@pytest.mark.parametrize("removed", ["relay_of_blocks_written", "relay_of_blocks_read"])
def test_a_missing_barrier_of_the_grid_shows(emulator: Emulator, removed: str) -> None:
    right = relay_of_blocks(emulator)
    wrong = []
    for seed in SEEDS:
        with emulator.schedule(seed, removed):
            wrong.append(relay_of_blocks(emulator) != right)
    assert sum(wrong) >= len(SEEDS) - 2


def test_a_block_that_leaves_the_grid_waiting_is_a_deadlock(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="deadlock"):
        relay_of_blocks(emulator, leave_early=True)
    assert relay_of_blocks(emulator) == [(t + 80) % 200 for t in range(200)], "and the next launch is none the worse for it"


def test_a_barrier_of_the_grid_wants_a_cooperative_launch(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="not cooperative"):
        relay_of_blocks(emulator, cooperative=False)


def test_a_cooperative_launch_wants_all_its_blocks_on_the_device(emulator: Emulator) -> None:
    assert len(relay_of_blocks(emulator, blocks=6)) == 240
    with pytest.raises(EmulationError, match="more blocks than the device holds"):
        relay_of_blocks(emulator, blocks=7)
    with pytest.raises(EmulationError, match="more blocks than the device holds"):
        relay_of_blocks(emulator, blocks=4, shared_bytes=48 << 10)
    with emulator.device(Device(cooperative=False)), pytest.raises(EmulationError, match="no cooperative launches"):
        relay_of_blocks(emulator)


def test_shared_memory_that_a_kernel_did_not_ask_for(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="more dynamic shared memory"):
        relay_of_blocks(emulator, blocks=1, shared_bytes=49 << 10)


def test_a_lane_missing_from_a_shuffle_is_a_deadlock(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="deadlock"):
        emulator.call("gs_half_a_warp", (ctypes.c_int * 32)())


def test_lanes_at_different_barriers(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="different kinds"):
        emulator.call("gs_mixed_barriers", (ctypes.c_int * 32)())


def test_writes_past_shared_memory(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="past the end of shared memory"):
        emulator.call("gs_overrun", (ctypes.c_int * 8)())


def test_a_misaligned_access(emulator: Emulator) -> None:
    with pytest.raises(EmulationError, match="misaligned"):
        emulator.call("gs_misaligned")


def test_shared_memory_starts_as_nan(emulator: Emulator) -> None:
    out = np.zeros(32)
    emulator.call("gs_uninitialized", out.ctypes.data_as(ctypes.c_void_p))
    assert np.isnan(out).all()


def test_every_barrier_has_its_own_name() -> None:
    names = barriers()
    assert len(names) == len(set(names)) >= 8
