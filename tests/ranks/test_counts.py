"""The messages of a step are counted: surgery adds one, whose length depends on the number of tasks alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from ranks.counted import Message
from ranks.launch import ranks
from ranks.representation_counts import counts

K = Message("allreduce_", 6, torch.float64)
"""T(T+1)/2 doubles, of 3 tasks."""


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp"])
def test_surgery_on_a_representation_adds_one_message(wrapped: str) -> None:
    for of_rank in ranks(2, counts, wrapped):
        for messages, profiled in of_rank.values():
            assert len(messages) == profiled, "two ways of counting agree"
        sent = {name: Counter(messages) for name, (messages, _) in of_rank.items()}
        plain = sent["plain"]
        assert plain.total() > 0
        assert sent["global"] == plain + Counter([K])
        assert sent["local"] == plain
        assert sent["groups"] == plain + Counter([K._replace(elements=2 * 6)])
        assert sent["serving"] == plain, "the third of three steps that share their weights"
        assert sent["losses"] == plain + Counter([K._replace(elements=6 + 3)])


def test_what_distributed_data_parallel_sends_of_buffers() -> None:
    """It broadcasts a model's buffers in each forward pass, PCGrad's counter among them, unless it is told not to."""
    for of_rank in ranks(2, counts, "ddp with buffers"):
        sent = {name: Counter(messages) for name, (messages, _) in of_rank.items()}
        assert sent["losses"] == sent["plain"] + Counter([K._replace(elements=6 + 3)])
        assert sent["global"] - sent["plain"] == Counter([K, Message("broadcast_", 2, torch.int64)])
