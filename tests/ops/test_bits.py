"""The same bits: run to run, for any number of threads, under every instruction set; and K symmetric without rounding."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ops import one_capability
from ops.coordinatewise_calls import calls
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from tolerances import DTYPES

import gradsurgery as gs

OPS = torch.ops.gradsurgery
CAPABILITIES = ("baseline", "avx2", "avx512")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    given = Sample([maker(dtype)(3, 200_003), maker(dtype)(3, 70_000)], 3, stacked=True)
    w = weights_of(3)
    results = []
    for count in (1, 2, 2, 3):
        with threads(count):
            out = given.empty()
            K = OPS.gram(given.grads, 3, True)
            OPS.combine_(out, given.grads, w, True)
            results.append((K, out))
    for K, out in results[1:]:
        assert torch.equal(K, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(out, results[0][1], strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit_of_coordinatewise_results(dtype: torch.dtype) -> None:
    for tasks in (3, 12):
        given = Sample([maker(dtype)(tasks, 200_003), maker(dtype)(tasks, 7)], tasks, stacked=True)
        for call in calls(given):
            results = []
            for count in (1, 2, 3):
                with threads(count):
                    out = given.empty()
                    call.run(OPS, given, out)
                    results.append(out)
            for out in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(out, results[0], strict=True)), call


@pytest.mark.parametrize("layout", LAYOUTS)
def test_run_to_run(layout: str, device: torch.device) -> None:
    given = sample(layout, 5, torch.float32, device)
    first = OPS.gram(given.grads, 5, given.stacked)
    assert torch.equal(first, first.T)
    for _ in range(3):
        assert torch.equal(OPS.gram(given.grads, 5, given.stacked), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_form_of_the_gradients_does_not_change_k(dtype: torch.dtype) -> None:
    """Where coordinates lie in the same order, K has the same bits: a matrix, rows, strided rows, rows of a wider matrix."""
    G = maker(dtype)(4, 2500)
    expected = gs.gram(G)
    wide = torch.zeros(4, 5000, dtype=dtype)
    wide[:, ::2] = G
    for same in (list(G), [row.clone() for row in G], wide[:, ::2], list(wide[:, ::2]), G.view(4, 50, 50), G.T.contiguous().T):
        assert torch.equal(gs.gram(same), expected)


@functools.cache
def report(capability: str) -> dict[str, Any]:
    """What ``one_capability.py`` prints under one instruction set."""
    env = os.environ | {"GRADSURGERY_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(gs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, one_capability.__file__], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["capability"] == capability
    return result


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> str:
    widest = gs.build_info()["cpu_capability_available"]
    if CAPABILITIES.index(request.param) > CAPABILITIES.index(widest):
        pytest.skip(f"this machine has {widest} at most")
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_instruction_set_does_not_change_k(capability: str, dtype: torch.dtype) -> None:
    """Products of two values of at most 24 bits are exact in float64, so that fusing multiply and add rounds nothing else."""
    assert report(capability)["grams"][str(dtype)] == one_capability.grams(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_instruction_set_does_not_change_coordinatewise_results(capability: str, dtype: torch.dtype) -> None:
    """Their sums are added in the order of the tasks, or of the values, and nothing is multiplied that would round."""
    assert report(capability)["coordinatewise"][str(dtype)] == one_capability.coordinatewise(dtype)


def test_sixteen_bit_conversions_are_torchs(capability: str) -> None:
    wrong = report(capability)["wrong"]
    assert len(wrong) == 12
    assert not any(wrong.values()), wrong
