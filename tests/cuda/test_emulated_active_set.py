"""The active-set solvers on the emulator where tasks are exchanged, refused, or combine to zero: a warp against one lane."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Emulator
from methods.families import grams
from methods.test_active_set import CALLS

OPS = torch.ops.gradsurgery


@pytest.mark.parametrize("family", ["rows scaled", "opposed 1e-06", "deficient", "negated", "integers", "duplicated, rows scaled"])
@pytest.mark.parametrize("name", CALLS)
def test_a_warp_gives_what_one_lane_gives(emulator: Emulator, name: str, family: str) -> None:
    solver, options = CALLS[name]
    for tasks in (2, 5, 9):
        K = grams(family, tasks, 4)
        expected, expected_report = OPS.solve(K, solver, options)
        for seed in (1, 2):
            with emulator.schedule(seed):
                w, report = emulator.operators.solve(K, solver, options)
            assert torch.equal(report[:, :2], expected_report[:, :2])
            difference = w - expected
            apart = (difference[:, None] @ K @ difference[..., None]).abs().sqrt()[:, 0, 0]
            sizes = (expected * K.diagonal(dim1=-2, dim2=-1).sqrt()).sum(1)
            assert bool((apart <= 1e-7 * sizes).all())
