"""How fast the machine reads memory at best, and how fast ``gradsurgery.gram`` does."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from cases import Case, gradients
from results import Row
from timing import Effort, interleave
from torch import Tensor

import gradsurgery as gs


def probes(device: torch.device, nbytes: int) -> dict[str, Callable[[], object]]:
    """Calls that read ``nbytes`` once and do next to nothing with them; the fastest of them is the machine's bandwidth."""
    x = torch.ones(nbytes // 4, device=device)
    calls: dict[str, Callable[[], object]] = {"torch.sum": x.sum, "torch.amax": x.amax, "torch.dot": lambda: torch.dot(x, x)}
    if device.type == "cpu" and sys.platform == "linux":
        calls["memchr"] = _memchr(x)
    return calls


def _memchr(x: Tensor) -> Callable[[], object]:
    """The C library's search for a byte that does not occur, a slice a thread: no arithmetic at all."""
    search = ctypes.CDLL(None).memchr
    search.argtypes, search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    size = x.nbytes // threads
    absent = 0x55  # 1.0f is 0x3f800000

    def slice_of(t: int) -> int | None:
        found: int | None = search(x.data_ptr() + t * size, absent, size)
        return found

    return lambda: list(pool.map(slice_of, range(threads)))


def read_rows(cases: Sequence[Case], effort: Effort, device: torch.device, probe_bytes: int) -> list[Row]:
    """One row for each probe and each case of ``gram``, from the same rounds."""
    calls = probes(device, probe_bytes)
    points: dict[str, Row] = {name: {"name": name} for name in calls}
    sizes = dict.fromkeys(calls, probe_bytes)
    for case in cases:
        name = f"gram {case}"
        grads = gradients(case, device)
        calls[name] = lambda grads=grads: gs.gram(grads)  # type: ignore[misc]
        sizes[name] = grads.nbytes
        points[name] = {"name": "gram", "tasks": case.tasks, "numel": case.numel, "dtype": case.dtype}
    return [
        {"kind": "read", **points[name], "bytes": sizes[name], **asdict(times), "gb_per_s": sizes[name] / times.p50 / 1e9}
        for name, times in interleave(calls, effort, device).items()
    ]
