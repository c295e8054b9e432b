"""Bits, hits and floors, by hand."""

from math import log2

import pytest
import torch
from multitoken.data.windows import IGNORE, window
from multitoken.metrics import Tally, Unigram, metrics_of
from multitoken.model import MultiTokenModel
from multitoken.objective import FutureTokens, task_names


def test_bits_and_hits_of_a_tally() -> None:
    tally = Tally("next1")
    assert tally.compute() == {}
    shares = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]])
    tally.update(shares[:1].log(), torch.tensor([[0, 2]]))
    tally.update(shares[1:].log(), torch.tensor([[0, IGNORE]]))
    # 1 bit (right), log2(10) bits (wrong), 2 bits (wrong); nothing is asked in the end.
    assert tally.compute() == pytest.approx({"next1/bits_per_byte": (1 + log2(10) + 2) / 3, "next1/accuracy": 1 / 3}, rel=1e-6)
    nothing = Tally("next2")
    nothing.update(shares.log(), torch.full((2, 2), IGNORE))
    assert nothing.compute() == {}


def test_floors_are_the_training_text_s_shares_on_what_each_head_is_asked() -> None:
    train, val = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2], dtype=torch.uint8), torch.tensor([1, 0, 2, 3], dtype=torch.uint8)
    problem = FutureTokens(MultiTokenModel(task_names(2), context=4, width=2, layers=1, attention_heads=1, vocabulary=4))
    unigram = Unigram(train, 4)
    # (count + 1) / (8 + 4): 6/12, 3/12, 2/12 and, though it never occurs, 1/12.
    assert unigram.log_shares.exp().tolist() == pytest.approx([6 / 12, 3 / 12, 2 / 12, 1 / 12])
    assert unigram.most_frequent == 0
    batch = {name: tensor[None] for name, tensor in window(val, 0, 4, 2).items()}
    # next1 is asked for 0, 2, 3; next2 for 2, 3.
    assert unigram.measure(problem, [batch]) == pytest.approx({
        "next1/bits_per_byte": (log2(2) + log2(6) + log2(12)) / 3, "next1/accuracy": 1 / 3,
        "next2/bits_per_byte": (log2(6) + log2(12)) / 2, "next2/accuracy": 0.0,
    })  # fmt: skip


def test_bits_stand_for_a_task() -> None:
    assert [(metric.name, metric.best, metric.primary) for metric in metrics_of(("next1",))] == [
        ("next1/bits_per_byte", 0.0, True),
        ("next1/accuracy", 1.0, False),
    ]
