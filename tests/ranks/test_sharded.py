"""Surgery on parameters that lie in parts on several ranks is that of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import sharded
from ranks.launch import ranks
from torch import Tensor

METHODS: dict[str, dict[str, Any]] = {"pcgrad": {"order": "random"}, "cagrad": {}, "upgrad": {}, "nashmtl": {}}
TRAINED = [("nested", 1), ("nested", 2), ("nested", 3), ("nested", 4), ("hybrid", 4), ("tensor", 2), ("both", 4)]
ASKED = [
    ("outermost", 3),
    ("nested", 2),
    ("recomputed", 2),
    ("kept", 2),
    ("apart", 2),
    ("hybrid", 4),
    ("tensor", 2),
    ("sequence", 2),
    ("both", 4),
]


@pytest.fixture(scope="module")
def trained_alone() -> dict[str, tuple[Tensor, Tensor]]:
    """By one process, which sees the whole batch."""
    return sharded.train_all(0, "", METHODS)


@pytest.fixture(scope="module")
def asked_alone() -> list[dict[str, Tensor | None]]:
    return sharded.all_ways(0, "")


@pytest.mark.parametrize(("layout", "world"), TRAINED)
def test_training_is_that_of_one_process(layout: str, world: int, trained_alone: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Twenty steps, with parameters of fewer rows than ranks; the same bits on every rank."""
    every = ranks(world, sharded.train_all, layout, METHODS)
    for method, (expected, weights) in trained_alone.items():
        for found in every:
            parameters, w = found[method]
            torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-12, msg=lambda m, method=method: f"{method}: {m}")
            torch.testing.assert_close(w, weights, rtol=1e-9, atol=1e-12)
            assert torch.equal(parameters, every[0][method][0])
            assert torch.equal(w, every[0][method][1])


@pytest.mark.parametrize(("layout", "world"), ASKED)
def test_every_way_to_ask(layout: str, world: int, asked_alone: list[dict[str, Tensor | None]]) -> None:
    """``.grad`` of trunk and heads, unused ones' None among them, w and K are those of one process."""
    for found in ranks(world, sharded.all_ways, layout):
        for way, mine, expected in zip(sharded.WAYS, found, asked_alone, strict=True):
            assert mine.keys() == expected.keys()
            for name, value in expected.items():
                where = f"{way}, {name}"
                assert (mine[name] is None) == (value is None), where
                if value is not None:
                    torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, where=where: f"{where}: {m}")


@pytest.mark.parametrize("layout", ["tensor", "sequence"])
def test_tasks_may_be_absent_under_tensor_parallelism(layout: str) -> None:
    """Where every rank has the same batch, and so the same tasks."""
    expected = sharded.absent_under_tensor_parallelism(0, "")
    for found in ranks(2, sharded.absent_under_tensor_parallelism, layout):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", ["nested", "kept"])
def test_what_is_sent(layout: str) -> None:
    """Beside FSDP's own messages, of a forward and T backward passes, one of T(T+1)/2 doubles.

    Where parameters stay gathered until the last task's pass, those are (T + 1) N b (W - 1)/W bytes, and some padding.
    """
    again, once = ranks(2, sharded.sent, layout)[0]
    tasks, parameters = 3, sharded.Net()
    trunk = 8 * sum(p.numel() for p in parameters.trunk.parameters() if p.requires_grad and p is not parameters.trunk[4].unused)
    head = 8 * 9
    for calls, gathered in ((again, 1 + tasks), (once, 2 if layout == "nested" else 1)):
        assert [size for name, size in calls if "allreduce" in name] == [8 * tasks * (tasks + 1) // 2]
        reduced = sum(size for name, size in calls if "reduce_scatter" in name)
        assert tasks * (trunk + head) <= reduced <= 1.05 * tasks * (trunk + head)
        whole = 8 * sum(p.numel() for p in parameters.parameters())
        received = sum(size for name, size in calls if "allgather" in name)
        assert received <= 1.15 * gathered * whole


def test_misuse() -> None:
    """Refused before a message is sent, and with nothing written."""
    told, other = ranks(2, sharded.refused)
    assert told == other
    expected = {
        "sync": "process_group: expected the mesh of the sharded parameters",
        "alone": "process_group: expected the mesh of the sharded parameters",
        "accumulate": "accumulate: expected True",
        "memory": "memory: expected 'full'",
        "passes": "passes: expected 'sequential'",
        "gram_on": "gram_on: expected None",
        "inputs": "inputs: expected None",
        "collect": "collect: expected whole parameters",
        "total": "total: expected whole parameters",
        "absent": "losses: expected one of every task on every rank",
        "plain": "shared: expected parameters as fully_shard left them",
        "names": "shared: expected named parameters",
        "gathered": "shared: expected parameters as fully_shard left them",
        "unreduced": "set_requires_gradient_sync",
        "written": "[]",
    }
    assert told.keys() == expected.keys()
    for name, part in expected.items():
        assert part in told[name], f"{name}: {told[name]}"


def test_parameters_that_are_all_gathered_are_noticed() -> None:
    assert all("which FSDP had gathered for this step" in told for told in ranks(2, sharded.all_gathered))


def test_a_group_of_some_of_the_ranks() -> None:
    assert all("expected all ranks that hold a part" in told for told in ranks(4, sharded.outside))


def test_a_batch_that_is_divided_where_nobody_reduces() -> None:
    told = ranks(4, sharded.divided_under_tensor_parallelism)
    assert all("process_group: expected the mesh of tensor parallelism" in one for one in told), told


def test_ranks_with_different_tasks_are_named() -> None:
    told = ranks(2, sharded.different, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert all("losses: expected the same on every rank, found rank 0: ['a', 'b', 'c']; rank 1: ['a', 'c']" in one for one in told)
