"""Ranks that have each their part of a batch train as one process does that has all of it."""

from __future__ import annotations

import pytest
import torch
from ranks.launch import ranks
from ranks.representation import Case, Trained, alone, together
from tolerances import TOLERANCES

METHODS = ("pcgrad", "cagrad", "upgrad", "nashmtl")
FORMS = ("split", "detach")


def _allowed(dtype: torch.dtype) -> float:
    """Parameters of the order of 1 after 20 steps, each of which rounds sums that were added in another order."""
    return 1e-12 if dtype == torch.float64 else 16 * TOLERANCES[dtype].rounding


def _check(case: Case, one: Trained, of_ranks: list[Trained]) -> None:
    first = of_ranks[0]
    for rank in of_ranks:
        assert torch.equal(rank.weights, first.weights), "weights are the same bits on every rank, in every step"
        assert torch.equal(rank.parameters, first.parameters)
        assert rank.present == one.present
    assert first.weights.shape == one.weights.shape
    torch.testing.assert_close(first.parameters, one.parameters, rtol=0, atol=_allowed(case.dtype), msg=lambda m: f"{case}: {m}")
    torch.testing.assert_close(first.weights, one.weights, rtol=16 * _allowed(case.dtype), atol=16 * _allowed(case.dtype))
    if one.gram is None:
        assert first.gram is None
    else:
        assert first.gram is not None
        torch.testing.assert_close(first.gram, one.gram, rtol=0, atol=16 * _allowed(case.dtype) * float(one.gram.abs().max()))


def _check_all(world: int, cases: list[Case]) -> None:
    outcomes: list[list[Trained]] = ranks(world, together, cases)
    for k, case in enumerate(cases):
        _check(case, alone(case), [outcome[k] for outcome in outcomes])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_method_as_one_process(world: int) -> None:
    """PCGrad draws its order from the counter that the ranks share; SGD shows the size of a gradient, Adam that it lasts."""
    _check_all(world, [Case(method, FORMS[k % 2], optimizer=("sgd", "adam")[k // 2]) for k, method in enumerate(METHODS)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_forms(dtype: torch.dtype) -> None:
    _check_all(2, [Case(method, FORMS[1 - k % 2], dtype=dtype, optimizer="adam") for k, method in enumerate(METHODS)])


def test_ways_of_distributed_data_parallel() -> None:
    """A static graph; two micro-batches, of which the first sends nothing but K."""
    _check_all(2, [Case(wrapped="static"), Case("upgrad", micro_batches=2), Case("nashmtl", "detach", micro_batches=2)])


def test_groups_memory_and_weights_that_serve_again() -> None:
    cases = [
        Case(pyramid=True, options={"group_by": "tensor"}),
        Case("cagrad", "detach", pyramid=True, options={"group_by": "layer"}),
        Case("upgrad", options={"every": 3}),
        Case("pcgrad", options={"every": 3, "group_by": "tensor"}, pyramid=True),
        Case("gradvac", options={"seed": 3}),
    ]
    _check_all(2, cases)


@pytest.mark.slow
def test_a_compiled_trunk() -> None:
    _check_all(2, [Case(wrapped="compiled"), Case("cagrad", wrapped="compiled", pyramid=True, options={"group_by": "tensor"})])


@pytest.mark.slow
@pytest.mark.parametrize(("world", "wrapped"), [(2, "fsdp"), (4, "hsdp")])
def test_sharded_parameters(world: int, wrapped: str) -> None:
    """``fully_shard`` of trunk and root, over one dimension, and over the second of a 2×2 mesh whose first replicates."""
    _check_all(world, [Case(method, FORMS[k % 2], wrapped, optimizer="adam") for k, method in enumerate(METHODS)])
