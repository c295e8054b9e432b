"""Ranks that end, hang, or compute NaN: the others say what they waited for, or decide the same."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from ranks.launch import attempts, ranks
from ranks.representation_faults import EXIT_STATUS, broken, never_built, not_a_number, not_a_number_alone, planted, taking_part

SHORT = timedelta(seconds=3)


@pytest.mark.parametrize("fault", ["ends", "hangs", "raises"])
def test_a_rank_that_does_not_come_ends_the_others(fault: str) -> None:
    first, second, third = attempts(3, broken, fault, timeout=SHORT)
    for told in (first, third):
        assert "RuntimeError: all_reduce of the Gram matrix of step 2 (6 doubles) over the ranks [0, 1, 2] failed on rank" in told
        assert "Another rank has ended, hangs, or never came here" in told
    if fault == "raises":
        assert "FileNotFoundError: no such image" in second
    else:
        assert second == EXIT_STATUS


def test_a_rank_that_does_not_build_its_aggregator() -> None:
    first, second = attempts(2, never_built, timeout=SHORT)
    assert "ValueError: c: expected" in second
    assert "RuntimeError: new_group for GradientAggregator over the ranks [0, 1] failed on rank 0" in first


@pytest.mark.parametrize("method", ["pcgrad", "gradvac"])
def test_not_a_number_on_one_rank_is_so_on_all(method: str) -> None:
    """The step's weights are NaN everywhere, and the method remembers what one process would."""
    expected_weights, expected_memory = not_a_number_alone(method)
    assert not expected_weights[1].isfinite().any()
    for weights, memory in ranks(2, not_a_number, method):
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(memory, expected_memory, rtol=0, atol=1e-12)


def test_other_weights_on_one_rank_are_found_in_debug_mode() -> None:
    told = ranks(3, planted, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert len(set(told)) == 1
    assert told[0].startswith("RuntimeError weights: expected the same bits on every rank in step 1, found rank 0: [")
    assert "rank 1: [0.333" in told[0]


def test_steps_without_a_task_that_cannot_be() -> None:
    for no_group, grouped, waiting, local, dropped in ranks(2, taking_part):
        assert no_group.startswith("RuntimeError take_part: expected an aggregator with process_group=")
        assert grouped.startswith("RuntimeError take_part: expected an earlier step of this rank")
        assert waiting.startswith("RuntimeError take_part: expected a step without a task, found gradients at the features")
        assert (local, dropped) == ("nothing", "nothing")
