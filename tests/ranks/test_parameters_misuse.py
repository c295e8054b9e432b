"""Steps in parameter space that several processes cannot make: what they are told, on every rank, with nothing written."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from ranks import parameters
from ranks.launch import ranks


@cache
def said() -> list[dict[str, str]]:
    return ranks(2, parameters.misuse)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shared", r"shared: expected the parameters that the tasks share, with process_group="),
        ("memory", r"memory: expected none with process_group="),
        ("gram_on", r"gram_on: expected none with process_group="),
        ("names", r"shared: expected named parameters for group_by='layer'"),
        ("other", r"number of parameters in shared: expected the same on every rank, found rank 0: 2; rank 1: 4"),
        ("order", r"shared\[0\]: expected the same on every rank, found rank 0: .*\[3\].*; rank 1: .*\[7\]"),
        ("tasks", r"the tasks of the first step \(where they differ, pass inputs= .*rank 0: \['a', 'b'\]"),
        ("alike", r"a parameter that the losses reach, \[\d\]: expected the same on every rank.*1\.0, 1\.0.*; .*2\.0, 2\.0"),
        ("nothing", r"shared: expected parameters that some loss depends on"),
        ("unreached", r"shared: expected parameters that some loss depends on"),
        ("no group", r"expected one process, found 2.* process_group="),
        ("further", r"inputs: expected the losses to reach the same parameters as in the first step.* shape \[2\]"),
    ],
)
def test_what_is_said(name: str, message: str) -> None:
    for of_rank in said():
        assert re.search(message, of_rank[name]), of_rank[name]


def test_a_loss_that_is_nan_on_one_rank() -> None:
    """All ranks' shared gradients are NaN, and the heads of the other tasks are not."""
    each = ranks(2, parameters.not_finite)
    for shared, heads, weights in each:
        assert all(shared)
        assert heads == [False, True, False]
        torch.testing.assert_close(weights, each[0][2], rtol=0, atol=0, equal_nan=True)


def test_total() -> None:
    for by_total, by_backward in ranks(2, parameters.totals):
        for one, other in zip(by_total, by_backward, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
