"""TaskGradients: every accepted form becomes one, and every other is refused with its place named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradsurgery.capture.gradients import TaskGradients

A, B = torch.ones(2, 3), torch.zeros(4)


def test_a_matrix_is_stacked_and_not_copied() -> None:
    G = torch.randn(3, 4, 5)
    given = TaskGradients.of(G)
    assert (given.tasks, given.pieces, given.stacked, given.single) == (3, 1, True, True)
    assert given.entries == [G]
    assert given.present == (True, True, True)
    assert given.empty()[0].shape == (4, 5)


def test_one_tensor_a_task() -> None:
    given = TaskGradients.of([A, None, A])
    assert (given.tasks, given.pieces, given.stacked, given.single) == (3, 1, False, True)
    assert given.entries[0] is A
    assert given.present == (True, False, True)


def test_one_list_a_task() -> None:
    given = TaskGradients.of((None, [A, None], (None, B), [A, B]))
    assert (given.tasks, given.pieces, given.stacked, given.single) == (4, 2, False, False)
    assert [g is not None for g in given.entries] == [False, False, True, False, False, True, True, True]
    assert given.present == (False, True, True, True)
    assert given.device == torch.device("cpu")
    assert [tuple(g.shape) for g in given.empty()] == [(2, 3), (4,)]


def test_new_outputs_keep_layout_and_type() -> None:
    like = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    (out,) = TaskGradients.of([None, like]).empty()
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.bfloat16


def test_parameters_pass() -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    assert TaskGradients.of([weight, weight.detach()]).tasks == 2
    assert TaskGradients.of(weight).tasks == 3


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (3, TypeError, r"grads: expected a \[T, N\] tensor or a sequence with one entry a task, found int"),
    "a generator": ((g for g in [A]), TypeError, r"grads: expected .* found generator"),
    "a dict": ({"a": A}, TypeError, r"grads: expected .* found dict"),
    "no task": ([], ValueError, r"grads: expected at least one task, found none \(T=0\)"),
    "no row": (torch.empty(0, 3), ValueError, r"grads: expected at least one task, found a tensor with T=0"),
    "a vector": (torch.ones(3), ValueError, r"\[T, N\].*shape \[3\].*pass \[gradient\]"),
    "a scalar": (torch.ones(()), ValueError, r"found a tensor of shape \[\]"),
    "an integer matrix": (torch.ones(2, 3, dtype=torch.int64), TypeError, r"grads: expected dtype float64.*found torch.int64"),
    "a complex matrix": (torch.ones(2, 3, dtype=torch.complex64), TypeError, r"grads: expected dtype .*found torch.complex64"),
    "a sparse matrix": (
        torch.eye(3).to_sparse(),
        ValueError,
        r"grads: expected a dense tensor, found layout torch.sparse_coo.*to_dense",
    ),
    "an integer task": ([A, A.int()], TypeError, r"grads\[1\]: expected dtype .* found torch.int32"),
    "a float8 task": ([A.to(torch.float8_e4m3fn)], TypeError, r"grads\[0\]: expected dtype .* found torch.float8_e4m3fn"),
    "a sparse task": ([A, A.to_sparse()], ValueError, r"grads\[1\]: expected a dense tensor"),
    "a number as a task": ([A, 3], TypeError, r"grads\[1\]: expected a tensor, a list of tensors or None, found int"),
    "a number in a list": ([[A, B], [A, 3]], TypeError, r"grads\[1\]\[1\]: expected a tensor or None, found int"),
    "other shapes": ([A, None, B], ValueError, r"grads\[2\]: expected shape \[2, 3\] like the tasks before it, found \[4\]"),
    "other shapes in lists": ([[A, B], [A, A]], ValueError, r"grads\[1\]\[1\]: expected shape \[4\] .* found \[2, 3\]"),
    "broadcastable shapes": ([A, A[:1]], ValueError, r"grads\[1\]: expected shape \[2, 3\] .* found \[1, 3\]"),
    "other devices": ([A, A.to("meta")], ValueError, r"grads\[1\]: expected device cpu like the gradients before it, found meta"),
    "other devices in a list": ([[A, B.to("meta")]], ValueError, r"grads\[0\]\[1\]: expected device cpu"),
    "mixed forms": ([A, [A]], TypeError, r"some tasks are given as tensors and some as lists of tensors; give all in one form"),
    "other lengths": ([[A, B], None, [A]], ValueError, r"every task must list the same.*found \[2, 0, 1\] entries"),
    "empty lists": ([[], []], ValueError, r"at least one, tensors; found \[0, 0\] entries"),
    "only absent tasks": ([None, None], ValueError, r"expected a gradient of at least one task, found only None"),
    "only absent entries": ([[None, None], [None, None]], ValueError, r"expected a gradient of at least one task, found only None"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    grads, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        TaskGradients.of(grads)
