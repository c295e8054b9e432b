"""Learning-rate factors, early stopping, sample order and random states."""

import math
import random

import numpy as np
import pytest
import torch
from harness.reproducibility import EpochSampler, random_state, restore_random_state, seed_everything
from harness.schedule import EarlyStopping, learning_rate_factor


def test_learning_rate_factors() -> None:
    cosine = learning_rate_factor("cosine", total_steps=110, warmup_steps=10)
    assert [cosine(step) for step in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert [cosine(step) for step in (10, 60, 110, 500)] == pytest.approx([1, 0.5, 0, 0])
    step = learning_rate_factor("step", total_steps=100, warmup_steps=0)
    assert [step(at) for at in (0, 59, 60, 84, 85, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    constant = learning_rate_factor("constant", total_steps=100, warmup_steps=0)
    assert {constant(at) for at in range(200)} == {1.0}
    with pytest.raises(ValueError, match="expected one of"):
        learning_rate_factor("linear", 1, 0)


def test_early_stopping_counts_epochs_without_a_better_score() -> None:
    stopping = EarlyStopping(patience=2)
    seen = [(stopping.update(epoch, score), stopping.stop) for epoch, score in enumerate([1.0, 2.0, 2.0, math.nan, 3.0])]
    assert seen == [(True, False), (True, False), (False, False), (False, True), (True, False)]
    assert (stopping.best, stopping.best_epoch) == (3.0, 4)
    resumed = EarlyStopping(patience=2)
    resumed.load_state_dict(stopping.state_dict())
    assert resumed.state_dict() == stopping.state_dict()
    patient = EarlyStopping(patience=0)
    assert not any(patient.update(epoch, -epoch) and patient.stop for epoch in range(10))
    assert not patient.stop


def test_the_sample_order_depends_on_seed_and_epoch_alone_and_is_entered_anywhere() -> None:
    sampler = EpochSampler(range(50), seed=3)
    sampler.enter(2)
    whole = list(sampler)
    assert sorted(whole) == list(range(50))
    sampler.enter(2, start=20)
    assert list(sampler) == whole[20:]
    assert len(sampler) == 30
    sampler.enter(3)
    assert list(sampler) != whole
    other = EpochSampler(range(50), seed=4)
    other.enter(2)
    assert list(other) != whole


def test_random_states_come_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_everything(1, deterministic=False)
    first = draw()
    state = random_state()
    second = draw()
    restore_random_state(state)
    assert draw() == second
    seed_everything(1, deterministic=False)
    assert draw() == first
