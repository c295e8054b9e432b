"""Every compiled solver on the emulator: a warp gives what one lane on the CPU gives, whatever the schedule of its threads."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Emulator
from ops.cross_calls import overflowing, unbalanced
from ops.solver_calls import SOLVER_METHODS, SolverCall, misfits, solver_call, solver_calls, task_counts
from torch import Tensor

OPS = torch.ops.gradsurgery


ABSENT = ((False, True, True, True, False, True), (True, False, True, True, True, False))


def half_stationary() -> Tensor:
    """K [4, 4] of two opposite gradients and two that have nothing to do with others, each of which comes first once."""
    K = torch.block_diag(torch.tensor([[1.0, -2.0], [-2.0, 4.0]]), torch.eye(2)).double()
    return torch.stack([K.roll((k, k), (0, 1)) for k in range(4)])


def assert_same_answer(call: SolverCall, actual: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    """Weights by what they do to K, for where they are not unique or badly determined they may differ; counters exactly."""
    (w, report, state, key), (other, other_report, other_state, other_key) = actual, expected
    assert w is not None
    assert other is not None
    assert report is not None
    assert other_report is not None
    norms = call.gram.diagonal(dim1=-2, dim2=-1).sqrt()
    difference, magnitude = w - other, (other.abs() * norms).sum(-1)
    if bool(other.isnan().any()):
        assert torch.equal(w.isnan(), other.isnan())
        return
    apart = (difference[..., None, :] @ call.gram @ difference[..., :, None]).clamp_min(0).sqrt().squeeze(-1, -2)
    assert bool((apart <= 1e-9 * magnitude).all())
    assert torch.equal(report[..., :3], other_report[..., :3])
    assert (state is None) == (other_state is None)
    if state is not None and other_state is not None:
        torch.testing.assert_close(state, other_state, rtol=1e-9, atol=1e-12)
    assert (key is None) == (other_key is None)
    if key is not None and other_key is not None:
        assert torch.equal(key, other_key)


@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_a_warp_gives_what_one_lane_gives(emulator: Emulator, name: str) -> None:
    for tasks in task_counts(name, 33):
        for call in solver_calls(name, tasks):
            assert_same_answer(call, call.run(emulator.operators), call.run(OPS))


@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_many_tasks_work_in_device_memory(emulator: Emulator, name: str) -> None:
    call = solver_call(name, 75)
    assert_same_answer(call, call.run(emulator.operators), call.run(OPS))


@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_groups_in_one_launch(emulator: Emulator, name: str) -> None:
    call = solver_call(name, 5, groups=4)
    w, report, *memory = call.run(emulator.operators)
    assert w.shape == (4, 5)
    assert report.shape == (4, 4)
    assert_same_answer(call, (w, report, *memory), call.run(OPS))


@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_schedules_do_not_change_a_bit(emulator: Emulator, name: str) -> None:
    calls = [solver_call(name, tasks, seed=1) for tasks in (3, 8, 33)]
    calls += [solver_call(name, len(present), seed, present=present) for present in ABSENT for seed in (1, 2)]
    calls += [solver_call(name, 4, seed=1).on(K) for K in half_stationary()]
    calls += [solver_call(name, 2, seed=3, groups=60)] if 2 in task_counts(name, 2) else []
    for call in calls:
        expected = call.run(emulator.operators)
        for seed in range(1, 6):
            with emulator.schedule(seed):
                for actual, wanted in zip(call.run(emulator.operators), expected, strict=True):
                    assert (actual is None) == (wanted is None)
                    if actual is not None and wanted is not None:
                        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_a_non_finite_gram_gives_nan_and_changes_no_memory(emulator: Emulator, name: str, value: float) -> None:
    """Of the other groups, too: a gradient scaler will skip the step."""
    call = solver_call(name, 4, groups=3)
    broken = call.gram.clone()
    broken[1, 0, 2] = broken[1, 2, 0] = value
    for ops in (emulator.operators, OPS):
        whole, _, _, _ = call.run(ops)
        w, report, state, key = call.on(broken).run(ops)
        assert w[1].isnan().all()
        assert report[1, 0] == 0
        assert torch.equal(w[::2], whole[::2])
        if call.state is not None:
            assert state is not None
            assert torch.equal(state, call.state)
        if call.key is not None:
            assert key is not None
            assert torch.equal(key, call.key)


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_arguments_of_other_sizes_are_refused(emulator: Emulator, name: str, groups: int) -> None:
    for wrong, message in misfits(solver_call(name, 5, groups=groups)):
        with pytest.raises(RuntimeError, match=message):
            wrong.run(emulator.operators)


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_an_iteration_that_leaves_the_numbers(emulator: Emulator, name: str) -> None:
    for call in (*overflowing(name), unbalanced(name)):
        w, report, state, _ = call.run(emulator.operators)
        other, other_report, other_state, _ = call.run(OPS)
        torch.testing.assert_close(w, other, rtol=1e-12, atol=0, equal_nan=True)
        assert torch.equal(report, other_report)
        torch.testing.assert_close(state, other_state, rtol=1e-12, atol=0, equal_nan=True)
