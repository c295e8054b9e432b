"""Launch parameters and the table of pieces: pure functions."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuda_emulator import Device, EmulationError, Emulator
from tolerances import DTYPES

TASKS = (1, 2, 7, 8, 9, 16, 17, 24, 25, 32, 33, 48, 100, 1000)
TILE, STAGED, SHARED = 8, 32, 48 * 1024


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("chunks", [1, 3, 511, 513, 100_000])
def test_gram_launch(emulator: Emulator, tasks: int, chunks: int) -> None:
    threads, blocks, panels = emulator.gram_launch(tasks, chunks)
    assert threads % 32 == 0
    assert 1 <= blocks <= min(chunks, 1024)
    pairs = tasks * (tasks + 1) // 2
    for groups in (2, 40, 1000):
        grouped = emulator.gram_launch(tasks, chunks, groups)
        assert (grouped[0], grouped[2]) == (threads, panels)
        assert grouped[1] == min(chunks, blocks + groups - 1)
    if tasks <= 8:
        assert (threads, panels) == (256, 1)
        return
    assert threads <= 320
    # A warp for every tile of the fullest panel, and slots for all of its 512-byte rows.
    row_blocks = ceil(min(tasks, STAGED), TILE)
    tiles = 2 * (row_blocks - 2) if tasks > STAGED else row_blocks * (row_blocks + 1) // 2
    assert threads // 32 >= tiles
    assert threads * 4 >= row_blocks * TILE * 32
    if tasks > STAGED:
        rows = ceil(tasks, 16)
        assert panels == rows * (rows + 1) // 2
        assert pairs * blocks * 8 <= max(64 << 20, pairs * 8)
    else:
        assert panels == 1


@pytest.mark.parametrize("tasks", TASKS)
def test_solver_launch(emulator: Emulator, tasks: int) -> None:
    for fused in (0, 1):
        warps = emulator.library.gs_pcgrad_warps(tasks, fused)
        assert 1 <= warps <= 32
        if tasks <= 32:
            assert emulator.library.gs_pcgrad_memory(tasks, fused) <= SHARED


# 132 multiprocessors with 228 KB of shared memory each, and 50 MB of L2 cache; the kernel's static shared memory is that of T = 8.
LARGE = Device(132, 2, 233_472, 232_448, 1024, 4112, 50 << 20)


@pytest.mark.parametrize("device", [LARGE, replace(LARGE, blocks=1), Device()], ids=["two_blocks", "one_block", "small"])
@pytest.mark.parametrize("tasks", range(1, 9))
def test_one_launch_fits_the_device(emulator: Emulator, tasks: int, device: Device) -> None:
    for numel in (0, 1, 2048, 2049, 50_000, 300_000, 2_000_000):
        length = emulator.library.gs_chunk_length(ctypes.c_int64(numel), tasks)
        chunks = ceil(numel, length)
        blocks, slots, shared = emulator.fused_launch(device, tasks, chunks, length, numel)
        if 4 * tasks * numel > 4 * (device.l2 + device.multiprocessors * device.shared_multiprocessor):
            assert blocks == 0
            continue
        assert 1 <= blocks <= max(1, min(chunks, 1024))
        assert shared == slots * tasks * 256 * 16
        assert shared + device.static_shared <= device.shared_block
        together = ceil(blocks, device.multiprocessors)
        assert together <= device.blocks
        assert together * (shared + device.static_shared + device.shared_reserved) <= device.shared_multiprocessor


def test_one_launch_keeps_what_fits(emulator: Emulator) -> None:
    """All of a block's chunks; else as many vectors as there is room for."""
    assert emulator.fused_launch(LARGE, 3, 0, 2048, 0) == (1, 0, 0)
    assert emulator.fused_launch(LARGE, 4, 5, 2048, 9000) == (5, 2, 2 * 4 * 4096)
    assert emulator.fused_launch(LARGE, 4, 300, 2048, 600_000) == (264, 4, 4 * 4 * 4096)  # two chunks each at most
    assert emulator.fused_launch(LARGE, 8, 130, 2048, 260_000)[1] == 2
    assert emulator.fused_launch(LARGE, 8, 1000, 2048, 2_000_000)[1] == 3  # of eight: 108 KB of 32 KB each
    assert emulator.fused_launch(replace(LARGE, blocks=1), 8, 1000, 2048, 2_000_000)[1] == 6


def test_what_takes_several_launches(emulator: Emulator) -> None:
    fits = (7, 100, 2048, 200_000)
    assert emulator.fused_launch(LARGE, *fits)[0] > 0
    assert emulator.fused_launch(LARGE, 9, 100, 2048, 200_000)[0] == 0
    assert emulator.fused_launch(LARGE, *fits, groups=2)[0] == 0
    assert emulator.fused_launch(LARGE, *fits, float64=True)[0] == 0
    assert emulator.fused_launch(replace(LARGE, cooperative=False), *fits)[0] == 0
    assert emulator.fused_launch(replace(LARGE, blocks=0), *fits)[0] == 0
    on_chip = 132 * 233_472 + (50 << 20)
    assert emulator.fused_launch(LARGE, 4, 10_000, 32768, on_chip // 4)[0] > 0
    assert emulator.fused_launch(LARGE, 4, 10_000, 32768, on_chip // 4 + 1)[0] == 0
    assert emulator.fused_launch(LARGE, 4, 200_000, 32768, 2**33)[0] == 0


def test_the_table_fits_a_launch(emulator: Emulator) -> None:
    assert emulator.library.gs_parameter_bytes() <= 4096 - 64, "other parameters need room, too"
    assert emulator.library.gs_sample_parameter_bytes() <= 4096


@pytest.mark.parametrize("tasks", [2, 8, 9, 33])
def test_chunk_length(emulator: Emulator, tasks: int) -> None:
    lengths = [emulator.library.gs_chunk_length(n, tasks) for n in (np.ctypeslib.ctypes.c_int64(10**k) for k in range(11))]
    assert lengths == sorted(lengths)
    assert lengths[0] == 2048
    assert lengths[-1] == (32768 if tasks <= 8 else 4096)
    assert all(length & (length - 1) == 0 for length in lengths)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_heads(emulator: Emulator, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    """The first coordinate from which 16 bytes of every row are aligned, and the output's share of them is, too."""
    size, out_size = dtype.itemsize, out_dtype.itemsize
    width, base = 16 // size, 1 << 20
    for offset in range(width):
        rows = [base + offset * size, base + 4096 + offset * size, 0]
        for out_offset in range(16):
            head = -offset % width
            out = base + 8192 + out_offset * out_size
            fits = (out + head * out_size) % min(16, width * out_size) == 0
            assert emulator.heads(rows, dtype, out, out_dtype) == (head, head if fits else -1)
    assert emulator.heads([base, base + size], dtype, base, out_dtype) == (-1, -1)
    assert emulator.heads([0, 0], dtype, base + out_size, out_dtype) == (-1, 16 // out_size - 1)


@pytest.mark.parametrize(
    "numel",
    [
        [1],
        [0, 0, 5, 0, 2048, 2049, 0, 4096, 1, 0],
        [65537, 3, 70000],
        [7] * 1000,
        [5_000_000_000, 3, 40_000],
    ],
    ids=["one", "empty_pieces", "odd", "many", "beyond_32_bits"],
)
def test_chunks_cover_every_coordinate_once(emulator: Emulator, numel: list[int]) -> None:
    chunks = emulator.chunks(numel, tasks=2)
    at = 0
    for piece, size in enumerate(numel):
        start = 0
        while start < size:
            assert chunks[at, 0] == piece
            assert chunks[at, 1] == start
            assert 1 <= chunks[at, 2] <= 32768
            start += int(chunks[at, 2])
            at += 1
        assert start == size
    assert at == len(chunks)


@pytest.mark.parametrize("tasks", [2, 9, 33, 1024])
def test_chunks_beyond_32_bits(emulator: Emulator, tasks: int) -> None:
    """More than 2^31 coordinates in a piece, before a piece, and in total."""
    numel, length = [2**33 + 5, 3, 2**40 + 1], 32768 if tasks <= 8 else 4096
    first, last = ceil(numel[0], length), ceil(numel[2], length)
    count = first + 1 + last
    assert emulator.chunk(numel, tasks, 0) == (0, 0, length, count)
    assert emulator.chunk(numel, tasks, first - 2) == (0, 2**33 - length, length, count)
    assert emulator.chunk(numel, tasks, first - 1) == (0, 2**33, 5, count)
    assert emulator.chunk(numel, tasks, first) == (1, 0, 3, count)
    assert emulator.chunk(numel, tasks, first + 1) == (2, 0, length, count)
    assert emulator.chunk(numel, tasks, count - 1) == (2, 2**40, 1, count)


@pytest.mark.parametrize("tasks", [2, 9])
def test_more_chunks_than_can_be_counted_are_refused(emulator: Emulator, tasks: int) -> None:
    most = (32768 if tasks <= 8 else 4096) << 30
    assert emulator.chunk([most], tasks, 2**30 - 1)[3] == 2**30
    with pytest.raises(EmulationError, match="more coordinates than chunks can be counted"):
        emulator.chunk([most, 1], tasks, 0)
