"""The active-set solvers on the emulator where tasks are exchanged, refused, or combine to zero: a warp against one lane."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Emulator
from methods.families import grams, noisy
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


@pytest.mark.parametrize("family", ["in a plane", "negated", "opposed 1e-06"])
@pytest.mark.parametrize("name", CALLS)
def test_a_warp_adds_the_ridge_that_one_lane_adds(emulator: Emulator, name: str, family: str) -> None:
    solver, options = CALLS[name]
    for tasks in (3, 9):
        for noise in (1e-8, 1e-6):
            _, K = noisy(family, tasks, 6, noise)
            w, report = OPS.solve(K, solver, options)
            sizes = w.abs() * K.diagonal(dim1=-2, dim2=-1).sqrt()
            for seed in (1, 2):
                with emulator.schedule(seed):
                    other, said = emulator.operators.solve(K, solver, options)
                assert torch.equal(said[:, :2], report[:, :2])
                apart = (other - w).abs() * K.diagonal(dim1=-2, dim2=-1).sqrt()
                assert bool((apart.sum(1) <= 1e-6 * sizes.sum(1)).all())
