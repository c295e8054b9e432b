"""The CUDA kernels on the CPU: builds ``tests/cuda/emulator`` with the C++ compiler and drives it.

What runs is the text that nvcc compiles, launch functions and operators included; see ``simt.h`` for what the emulator can find.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gradsurgery.ops.schema import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "cuda" / "emulator"
TORCH = Path(torch.__file__).parent
FLAGS = (
    *("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Werror", "-Wno-unknown-pragmas"),
    *("-DGS_EMULATE_CUDA", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
)
SCALARS = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/common/rows.h
KINDS = {"ascending": 0, "given": 1, "random": 2}  # csrc/weights/pcgrad.h

Float64 = npt.NDArray[np.float64]
Row = Tensor | None


class EmulationError(RuntimeError):
    """What the emulator found: a deadlock, a write outside of shared memory, an invalid launch."""


@dataclass(frozen=True)
class Device:
    """The device that the emulator stands for; memory in bytes. Small, as all threads of a cooperative launch are alive at once."""

    multiprocessors: int = 3
    blocks: int = 2  # of any kernel on a multiprocessor, as far as registers go
    shared_multiprocessor: int = 100 << 10
    shared_block: int = 99 << 10
    shared_reserved: int = 1 << 10
    static_shared: int = 8 << 10
    l2: int = 1 << 20
    cooperative: bool = True

    def limits(self) -> npt.NDArray[np.int32]:
        """In the order of the C interface. [8]"""
        return np.array([getattr(self, field.name) for field in fields(self)], dtype=np.int32)


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not found:
        pytest.skip("the CUDA emulator needs a C++ compiler")
    return found


def library() -> Path:
    """The emulator as a shared library, compiled once and kept for as long as no source changes."""
    includes = [f"-I{path}" for path in (SOURCES, TORCH / "include", sysconfig.get_path("include"))]
    linked = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [compiler(), *FLAGS, *includes, str(SOURCES / "register_emulated.cpp"), *linked]
    digest = hashlib.sha256(" ".join([*command, torch.__version__]).encode())
    for file in sorted([*(ROOT / "csrc").rglob("*"), *SOURCES.rglob("*")]):
        if file.is_file():
            digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir(), f"gradsurgery-emulator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    result = folder / f"emulator-{digest.hexdigest()[:20]}.so"
    if not result.exists():
        unfinished = folder / f"{result.name}.{os.getpid()}"
        compiled = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, f"the emulator does not compile:\n{compiled.stderr}"
        unfinished.rename(result)
    return result


def barriers() -> list[str]:
    """The names of all barriers in the kernels."""
    texts = [file.read_text() for file in sorted((ROOT / "csrc").rglob("*.cuh"))]
    return [name for text in texts for name in re.findall(r"GS_(?:GRID|BLOCK|WARP)_BARRIER\((\w+)\)", text)]


def placed(values: Tensor, offset: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """A flat copy that starts ``offset`` elements past a border of 64 bytes, between NaNs."""
    flat = values.detach().reshape(-1).to(dtype or values.dtype)
    size = flat.element_size()
    buffer = torch.full((flat.numel() + offset + 256 // size,), torch.nan, dtype=flat.dtype)
    start = -buffer.data_ptr() % 64 // size + offset
    result = buffer[start : start + flat.numel()]
    result.copy_(flat)
    return result


def untouched_around(row: Tensor) -> bool:
    """Whether the NaNs around a ``placed`` tensor are still there."""
    buffer = row._base
    assert buffer is not None
    start, stop = row.storage_offset(), row.storage_offset() + row.numel()
    return bool(buffer[:start].isnan().all() and buffer[stop:].isnan().all())


def matrix(pieces: Sequence[Sequence[Row]]) -> Float64:
    """The gradients side by side in float64, absent ones as zeros. pieces: [P][T] -> [T, N]"""
    columns = []
    for rows in pieces:
        numel = next((row.numel() for row in rows if row is not None), 0)
        columns.append(np.stack([np.zeros(numel) if row is None else row.double().numpy() for row in rows]))
    return np.concatenate(columns, axis=1)


@dataclass
class _Table:
    """Arguments by which the C interface takes rows; the arrays keep the memory alive."""

    numel: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint64]
    scalars: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, pieces: Sequence[Sequence[Row]], out: Sequence[Tensor] | None = None) -> _Table:
        present = [[row for row in rows if row is not None] for rows in pieces]
        for rows in present:
            assert len({row.dtype for row in rows}) <= 1, "rows of a piece share a dtype"
            assert all(row.dim() == 1 and row.is_contiguous() for row in rows)
        first = [rows[0] if rows else None for rows in present]
        like = [row if row is not None else (out[p] if out else torch.empty(0)) for p, row in enumerate(first)]
        return cls(
            np.array([row.numel() for row in like], dtype=np.int64),
            np.array([[0 if row is None else row.data_ptr() for row in rows] for rows in pieces], dtype=np.uint64),
            np.array([SCALARS[row.dtype] for row in like], dtype=np.uint8),
        )

    def arguments(self) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
        return _pointer(self.numel), _pointer(self.data), _pointer(self.scalars)


def _pointer(array: npt.NDArray[np.generic] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


@dataclass
class Operators:
    """The namespace of the CUDA operators, and the device that their tensors lie on."""

    ops: Any
    device: torch.device


def _first_pieces(sizes: Sequence[int] | None, pieces: int) -> npt.NDArray[np.int64]:
    """[G + 1]: where groups of these sizes begin."""
    first = np.cumsum([0, *([pieces] if sizes is None else sizes)], dtype=np.int64)
    assert first[-1] == pieces
    return first


class Emulator:
    """The C interface of ``emulator.cpp`` with NumPy's types; and ``operators``, the CUDA operators on CPU tensors."""

    def __init__(self) -> None:
        path = library()
        self._defined = torch.library.Library("gradsurgery_emulated", "DEF")
        for schema in SCHEMAS:
            self._defined.define(schema)
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        self.library = ctypes.CDLL(str(path))
        self.operators = torch.ops.gradsurgery_emulated
        for name in ("gs_error", "gs_launches", "gs_reached"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.gs_hold.restype = ctypes.c_void_p
        self.library.gs_ring_words.restype = ctypes.c_int64
        self.library.gs_pcgrad_memory.restype = ctypes.c_int64
        self.library.gs_traffic.restype = ctypes.c_int64

    def call(self, name: str, *arguments: object) -> None:
        if getattr(self.library, name)(*arguments) != 0:
            raise EmulationError(self.library.gs_error().decode())

    @contextmanager
    def schedule(self, seed: int = 0, removed: str = "") -> Iterator[None]:
        """Runs with the threads in another order, or with one of the barriers taken out."""
        self.library.gs_schedule(seed)
        self.library.gs_remove_barrier(removed.encode())
        try:
            yield
        finally:
            self.library.gs_schedule(0)
            self.library.gs_remove_barrier(b"")

    def reached(self) -> set[str]:
        """The names of the barriers that threads have come to since this was last asked."""
        return set(self.library.gs_reached().decode().split())

    @contextmanager
    def launches(self) -> Iterator[Counter[str]]:
        """How many kernels each host function launches within; known afterwards."""
        result: Counter[str] = Counter()
        self.library.gs_forget_launches()
        yield result
        for line in self.library.gs_launches().decode().splitlines():
            function, count = line.split()
            result[function] = int(count)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """As if all streams were being captured into a CUDA graph."""
        self.library.gs_capturing(1)
        try:
            yield
        finally:
            self.library.gs_capturing(0)

    @contextmanager
    def held(self, words: npt.NDArray[np.int64], stream: int = 0, device: int = 0) -> Iterator[npt.NDArray[np.int64] | None]:
        """The memory of the cache that holds ``words``, in use; None where the cache does not take them."""
        memory = ctypes.c_void_p()
        count, at = ctypes.c_int64(len(words)), ctypes.c_int64(stream)
        handle = ctypes.c_void_p(self.library.gs_hold(device, at, _pointer(words), count, ctypes.byref(memory)))
        try:
            yield np.ctypeslib.as_array((ctypes.c_int64 * len(words)).from_address(memory.value)) if memory.value else None
        finally:
            self.library.gs_release(handle)

    @contextmanager
    def device(self, device: Device) -> Iterator[None]:
        """Runs on another device."""
        before, ignored = np.zeros(8, dtype=np.int32), np.zeros(8, dtype=np.int32)
        self.library.gs_device(_pointer(device.limits()), _pointer(before))
        try:
            yield
        finally:
            self.library.gs_device(_pointer(before), _pointer(ignored))

    @contextmanager
    def shared_with_others(self) -> Iterator[None]:
        """The device refuses cooperative launches, whatever it says of itself."""
        self.library.gs_shared_with_others(1)
        try:
            yield
        finally:
            self.library.gs_shared_with_others(0)

    def traffic(self) -> int:
        """Bytes of gradients, buffers and outputs that kernels have read and written so far."""
        return int(self.library.gs_traffic())

    def fused_launch(
        self, device: Device, tasks: int, chunks: int, length: int, numel: int, groups: int = 1, float64: bool = False
    ) -> tuple[int, int, int]:
        """(blocks, slots of kept vectors, bytes of shared memory) of the launch that does it all; no blocks: there is none."""
        result = np.zeros(3, dtype=np.int64)
        self.library.gs_fused_launch(
            *(tasks, groups, chunks, length, ctypes.c_int64(numel), int(float64)),
            *(_pointer(device.limits()), _pointer(result)),
        )
        return int(result[0]), int(result[1]), int(result[2])

    def gram(self, pieces: Sequence[Sequence[Row]], sizes: Sequence[int] | None = None) -> Float64:
        """K [T, T]; or [G, T, T], where ``sizes`` [G] of the pieces after each other are a group."""
        tasks, table = len(pieces[0]), _Table.of(pieces)
        first = _first_pieces(sizes, len(pieces))
        K = np.full((len(first) - 1, tasks, tasks), np.nan)
        self.call("gs_gram", tasks, len(pieces), *table.arguments(), len(first) - 1, _pointer(first), _pointer(K))
        return K[0] if sizes is None else K

    def combine(
        self,
        out: Sequence[Tensor],
        pieces: Sequence[Sequence[Row]],
        w: Float64,
        accumulate: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """Writes sum_t w_t g_t into ``out``; w [T], or [G, T] for groups of ``sizes``."""
        table, first = _Table.of(pieces, out), _first_pieces(sizes, len(pieces))
        targets = np.array([row.data_ptr() for row in out], dtype=np.uint64)
        scalars = np.array([SCALARS[row.dtype] for row in out], dtype=np.uint8)
        w = np.ascontiguousarray(w, dtype=np.float64)
        self.call(
            *("gs_combine", w.shape[-1], len(pieces), *table.arguments(), _pointer(targets), _pointer(scalars)),
            *(len(first) - 1, _pointer(first), _pointer(w), int(accumulate)),
        )

    def pcgrad_weights(
        self,
        K: Float64 | None = None,
        pieces: Sequence[Sequence[Row]] = (),
        order: npt.NDArray[np.int64] | None = None,
        key: npt.NDArray[np.int64] | None = None,
        include_self: bool = False,
        scale: float = 1.0,
    ) -> tuple[Float64, Float64]:
        """(w [T], K [T, T]) from K, or from the rows of ``pieces`` in the fused form; a K [G, T, T] gives w [G, T]."""
        tasks = len(pieces[0]) if K is None else K.shape[-1]
        table = _Table.of(pieces)
        gram = np.full((tasks, tasks), np.nan) if K is None else np.array(K, dtype=np.float64)
        w = np.full(gram.shape[:-1], -1.0)
        kind = KINDS["given" if order is not None else "random" if key is not None else "ascending"]
        groups = len(gram) if gram.ndim == 3 else 1
        self.call(
            *("gs_pcgrad_weights", groups, tasks, kind, _pointer(order), _pointer(key), int(include_self), ctypes.c_double(scale)),
            *(_pointer(gram), len(pieces), *table.arguments(), _pointer(w)),
        )
        return w, gram

    def gram_launch(self, tasks: int, chunks: int, groups: int = 1) -> tuple[int, int, int]:
        """(threads, blocks, panels)"""
        result = (ctypes.c_int * 3)()
        self.library.gs_gram_launch(tasks, chunks, groups, result)
        return result[0], result[1], result[2]

    def sample_plan(self, tasks: int, words: int, fused: bool, most: int) -> tuple[int, int, int, int]:
        """(window, bytes of shared memory, those beside the rows, warps)"""
        result = (ctypes.c_int64 * 4)()
        self.library.gs_sample_plan(tasks, ctypes.c_int64(words), int(fused), ctypes.c_int64(most), result)
        return result[0], result[1], result[2], result[3]

    def heads(self, rows: Sequence[int], dtype: torch.dtype, out: int, out_dtype: torch.dtype) -> tuple[int, int]:
        """Coordinates before the aligned ones, for rows (and an output) at these addresses; -1 where nothing aligns all."""
        data, result = np.array(rows, dtype=np.uint64), (ctypes.c_int * 2)()
        self.library.gs_heads(len(data), _pointer(data), SCALARS[dtype], ctypes.c_void_p(out), SCALARS[out_dtype], result)
        return result[0], result[1]

    def chunk(self, numel: Sequence[int], tasks: int, c: int) -> tuple[int, int, int, int]:
        """(piece, start, length) of chunk c, and the number of chunks; no memory of the gradients' size is needed."""
        sizes, result = np.array(numel, dtype=np.int64), np.zeros(4, dtype=np.int64)
        self.call("gs_chunk", tasks, len(sizes), _pointer(sizes), c, _pointer(result))
        piece, start, length, count = map(int, result)
        return piece, start, length, count

    def chunks(self, numel: Sequence[int], tasks: int) -> npt.NDArray[np.int64]:
        """(piece, start, length) of every chunk, as the kernels find them."""
        sizes = np.array(numel, dtype=np.int64)
        count = self.library.gs_chunks(tasks, len(sizes), _pointer(sizes), None, 0)
        result = np.zeros((count, 3), dtype=np.int64)
        self.library.gs_chunks(tasks, len(sizes), _pointer(sizes), _pointer(result), count)
        return result
