"""The compiled kernels, read without a GPU: the hot ones keep everything in registers and load 16 bytes at a time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_resources import ARCHITECTURES, FILES, Kernel, compile_kernels, disassembler, machine_code, toolkit

HOT = {
    *(f"gram_small<{tasks},f>" for tasks in range(1, 9)),
    *(f"gram_small<{tasks},d>" for tasks in (2, 4, 8)),
    *(f"combine_chunks<{rows},0,f>" for rows in range(1, 9)),
    *(f"combine_chunks<{rows},0,d>" for rows in (2, 4, 8)),
    *(f"ema_gram_small<{tasks},f>" for tasks in range(1, 9)),
    *(f"ema_gram_small<{tasks},d>" for tasks in (2, 4, 8)),
    "combine_chunks<8,1,f>",
    "combine_chunks<8,1,d>",
    *(f"graddrop_chunks<{rows},{leak},f>" for rows in ("2,0", "4,0", "8,0", "8,1") for leak in (0, 1)),
    *(f"graddrop_chunks<{rows},{leak},d>" for rows in ("8,0", "8,1") for leak in (0, 1)),
    *(f"sign_agreement_chunks<{rows},f>" for rows in ("2,0", "4,0", "8,0", "8,1")),
    *(f"sign_agreement_chunks<{rows},d>" for rows in ("8,0", "8,1")),
    *(f"sorted_chunks<{rows},f>" for rows in range(2, 9)),
    "sorted_chunks<8,d>",
}
# In registers, too; with so many rows each is read a few bytes at a time.
NARROW = {"sorted_chunks<16,f>"}
# In registers and shared memory.
MANY_TASKS = {"gram_tiled<f>", "gram_mma"}

pytestmark = pytest.mark.slow


@dataclass
class Compiled:
    """The kernels of all files, and the object files."""

    kernels: list[Kernel]
    objects: dict[str, Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    if toolkit() is None:
        pytest.skip("no nvcc was found; set CUDA_HOME")
    folder = tmp_path_factory.mktemp("cuda")
    result = Compiled([], {})
    result.objects = {source: folder / f"{Path(source).stem}.o" for source in FILES}
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        for kernels in compilers.map(compile_kernels, result.objects, result.objects.values()):
            result.kernels += kernels
    return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_kernels_do_not_spill(compiled: Compiled, architecture: int) -> None:
    here = {k.name: k for k in compiled.kernels if k.architecture == architecture}
    names = HOT | NARROW | MANY_TASKS
    assert here.keys() >= names
    assert {k.name: (k.stack, k.spills) for k in here.values() if k.name in names and (k.stack or k.spills)} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_blocks_of_the_common_kernels_fit_a_multiprocessor(compiled: Compiled, architecture: int) -> None:
    """65536 registers; blocks of 256 threads."""
    hot = HOT | NARROW
    common = [k for k in compiled.kernels if k.architecture == architecture and k.name in hot and k.name.endswith("f>")]
    assert all(2 * 256 * k.registers <= 65536 for k in common)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_static_shared_memory_needs_no_permission(compiled: Compiled, architecture: int) -> None:
    assert all(k.shared <= 48 * 1024 for k in compiled.kernels if k.architecture == architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_loops_load_16_bytes_from_global_memory(compiled: Compiled, architecture: int) -> None:
    if disassembler() is None:
        pytest.skip("neither the CUDA toolkit nor Triton brings cuobjdump")
    code: dict[str, list[str]] = {}
    for path in compiled.objects.values():
        code |= machine_code(path, architecture)
    for name in HOT:
        loads = [op for op in code[name] if op.startswith("LDG.E.") and ".128" in op]
        tasks = int(name.split("<")[1].split(",")[0])
        assert len(loads) >= tasks, f"{name}: {len(loads)} loads of 16 bytes"
        assert not any(op.startswith(("STL", "LDL")) for op in code[name]), f"{name} touches local memory"
    for name, operations in code.items():
        assert not any(op.startswith(("RED.", "ATOM")) for op in operations), f"{name}: an atomic would make sums unordered"
        assert not any("TF32" in op for op in operations)
