"""Sizes that only a GPU can be asked for: many tensors, many coordinates, and positions beyond 32 bits.

Without a GPU these are skipped, as in ``test_gpu.py``.
"""

from __future__ import annotations

import pytest
import torch
from cuda_kernels import kernels_of
from ops.samples import Sample, maker, weights_of
from oracles.pcgrad import pcgrad
from tolerances import assert_combined_close, assert_gram_close
from torch import Tensor

import gradsurgery as gs

OPS = torch.ops.gradsurgery
pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)


@pytest.fixture(autouse=True)
def _compiled(device: torch.device) -> None:
    assert gs.build_info()["cuda"] is True, f"the CUDA kernels are missing: {gs.build_info()['missing']}"


def _thousand(device: torch.device, tasks: int) -> Sample:
    make = maker(torch.float32, device)
    return Sample([make(1 + p % 50, 3) for _ in range(tasks) for p in range(1000)], tasks)


def test_a_thousand_tensors(device: torch.device) -> None:
    given = _thousand(device, 4)
    G = given.matrix()
    assert_gram_close(OPS.gram(given.grads, 4), G @ G.T, torch.float32)
    out = given.empty()
    w = weights_of(4, device)
    OPS.combine_(out, given.grads, w)
    flat = torch.cat([o.reshape(-1) for o in out])
    assert_combined_close(flat, w @ G, w.abs() @ G.abs())


def test_a_thousand_tensors_take_one_launch_a_stage(device: torch.device) -> None:
    given = _thousand(device, 4)
    out, w = given.empty(), weights_of(4, device)
    OPS.gram(given.grads, 4)
    gram = kernels_of(lambda: OPS.gram(given.grads, 4))
    assert sum("gram_small" in name for name in gram) == 1, gram
    OPS.combine_(out, given.grads, w)
    combine = kernels_of(lambda: OPS.combine_(out, given.grads, w))
    assert sum("combine_chunks" in name for name in combine) == 1, combine
    rest = [name for name in gram + combine if not any(known in name for known in ("gram_", "combine_chunks", "write_table"))]
    assert not any("gradsurgery" in name for name in rest), rest


def _opposed(tasks: int, numel: int, delta: float, device: torch.device) -> Tensor:
    """Gradients that share one direction, with turning signs, but for a part of this size. [T, N]"""
    make = maker(torch.float32, device)
    signs = (-1.0) ** torch.arange(tasks, device=device)
    return signs[:, None] * make(numel) + delta * make(tasks, numel)


# |result - exact| / |exact|. What opposed gradients leave over is small against what cancels, and is rounded in the combination.
@pytest.mark.parametrize(("delta", "allowed"), [(None, 3e-7), (1e-1, 5e-6), (1e-2, 5e-5)])
@pytest.mark.parametrize(("tasks", "numel"), [(3, 25_000_003), (8, 4_000_001), (12, 1_000_003)])
def test_large_gradients_are_as_exact_as_on_the_cpu(
    device: torch.device, tasks: int, numel: int, delta: float | None, allowed: float
) -> None:
    if torch.cuda.mem_get_info(device)[0] < 40 * tasks * numel:
        pytest.skip(f"needs {40 * tasks * numel / 1e9:.0f} GB of free device memory")
    G = maker(torch.float32, device)(tasks, numel) if delta is None else _opposed(tasks, numel, delta, device)
    exact = pcgrad(G.cpu()).to(device)
    found = gs.aggregate(G, "pcgrad", order="ascending")
    assert float((found.double() - exact).norm() / exact.norm()) <= allowed
    K = G.double() @ G.double().T
    assert_gram_close(OPS.gram([G], tasks, True), (K + K.T) / 2, torch.float32)


def test_positions_beyond_32_bits(device: torch.device) -> None:
    numel = 2**31 + 2**16 + 5
    if torch.cuda.mem_get_info(device)[0] < 16e9:
        pytest.skip("needs 16 GB of free device memory")
    rows = torch.zeros(2, numel, dtype=torch.bfloat16, device=device)
    places = torch.tensor([0, 2**31 - 1, 2**31, numel - 1], device=device)
    rows[0, places] = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16, device=device)
    rows[1, places] = 1.0
    assert OPS.gram([rows], 2, True).tolist() == [[30.0, 10.0], [10.0, 4.0]]
    w = torch.tensor([1.0, 10.0], dtype=torch.float64, device=device)
    OPS.combine_([rows[0]], [rows], w, True)
    assert rows[0, places].tolist() == [11.0, 12.0, 13.0, 14.0]
    assert int(rows[0].count_nonzero()) == 4
