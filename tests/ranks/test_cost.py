"""The cost model against the messages of real processes."""

from __future__ import annotations

from typing import get_args

import pytest
from ranks import costing
from ranks.launch import ranks

from gradsurgery.distributed.cost import Link, Mode, Traffic, all_reduce, reduce_scatter, traffic

TRUNK = sum(p.numel() for p in costing.Net(None).trunk.parameters())
HEADS = sum(p.numel() for p in costing.Net(None).heads.parameters())


def sent(calls: list[tuple[str, int]], world: int) -> float:
    """Bytes that a rank sends by rings: (W - 1)/W of a message, and twice that of an all-reduce."""
    times = {"allreduce": 2, "reduce_scatter": 1, "allgather": 1}
    return sum(
        next(count for name, count in times.items() if name in call.replace("all_", "all")) * nbytes * (world - 1) / world
        for call, nbytes in calls
    )


@pytest.mark.parametrize("world", [2, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_bytes_are_those_of_real_messages(world: int) -> None:
    for found in ranks(world, costing.costs):
        for mode, calls in found.items():
            assert mode in get_args(Mode)
            expected = traffic(mode, costing.TASKS, world, TRUNK, HEADS)
            # FSDP pads to the number of ranks, and its padding of small heads shows at 8; so do the flags of who reached what.
            assert sent(calls, world) == pytest.approx(expected.bytes, rel=0.05), (mode, calls)


def test_messages_are_those_of_real_steps() -> None:
    found = ranks(2, costing.costs)[0]
    for mode in ("representation", "parameters"):
        assert len(found[mode]) == traffic(mode, costing.TASKS, 2, TRUNK, HEADS).messages
    assert len(found["representation"]) == len(found["data parallel"]) + 1


def test_one_process_sends_nothing() -> None:
    for mode in get_args(Mode):
        assert traffic(mode, 3, 1, TRUNK, HEADS) == Traffic()


def test_by_hand() -> None:
    assert reduce_scatter(100.0, 4) == Traffic(75.0, 1, 3)
    assert all_reduce(1e9, 4) == Traffic(1.5e9, 1, 6)
    assert all_reduce(48.0, 1000).rounds == 20  # a tree: 2 log2 1000, rounded up
    assert traffic("parameters", 3, 2, 10**6).bytes == 4 * 4e6 / 2 + 48
    assert Traffic(1e9, 1, 10).seconds(Link(1e10, 1e-3)) == pytest.approx(0.11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "magic"}, "mode: expected"),
        ({"tasks": 0}, "tasks: expected"),
        ({"world": 0}, "world: expected"),
        ({"algorithm": "star"}, "algorithm: expected"),
    ],
)
def test_misuse(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        traffic(**({"mode": "parameters", "tasks": 3, "world": 2, "shared": 10} | change))  # type: ignore[arg-type]
