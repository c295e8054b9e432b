"""Dynamic weight average: what an epoch is, and what its means are over."""

from __future__ import annotations

import math

import pytest
import torch

import gradsurgery as gs


def call(balancer: gs.DynamicWeightAverage, *values: float | None) -> None:
    balancer([None if value is None else torch.tensor(value, dtype=torch.float64) for value in values])


def expected(*rates: float, temp: float = 2.0) -> list[float]:
    raw = [math.exp(rate / temp) for rate in rates]
    return [len(rates) * x / sum(raw) for x in raw]


@pytest.mark.parametrize("window", [None, 2])
def test_rates_are_ratios_of_epoch_means(window: int | None) -> None:
    balancer = gs.DynamicWeightAverage(2, temp=0.7, window=window)
    for epoch in ([(4.0, 1.0), (2.0, 3.0)], [(1.0, 1.0), (2.0, 3.0)]):
        assert balancer.weights.tolist() == [1.0, 1.0]
        for values in epoch:
            call(balancer, *values)
        balancer.end_epoch()
    assert balancer.weights.tolist() == pytest.approx(expected(1.5 / 3.0, 2.0 / 2.0, temp=0.7), rel=1e-14)
    call(balancer, 100.0, 0.1)  # counts in the next epoch
    assert balancer.weights.tolist() == pytest.approx(expected(0.5, 1.0, temp=0.7), rel=1e-14)


def test_a_window_ends_after_its_calls_alone() -> None:
    balancer = gs.DynamicWeightAverage(1, window=2)
    for value in (1.0, 2.0, 3.0):
        call(balancer, value)
        balancer.end_epoch()
    assert balancer._means.tolist()[0] == [1.5]
    assert balancer._calls == 1
    other = gs.DynamicWeightAverage(1, window=2)
    other.load_state_dict(balancer.state_dict())
    call(other, 5.0)
    assert other._means.tolist() == [[4.0], [1.5]]


def test_ending_an_epoch_without_a_call_changes_nothing() -> None:
    balancer = gs.DynamicWeightAverage(2)
    for values in ((2.0, 2.0), (1.0, 3.0)):
        call(balancer, *values)
        balancer.end_epoch()
    before = balancer.weights
    balancer.end_epoch()
    assert torch.equal(balancer.weights, before)


def test_an_absent_task_keeps_its_means_and_a_new_one_has_rate_one() -> None:
    balancer = gs.DynamicWeightAverage(3)
    for values in ((2.0, 4.0, None), (1.0, None, None), (0.1, 3.0, 5.0)):
        call(balancer, *values)
        balancer.end_epoch()
    assert balancer.weights.tolist() == pytest.approx(expected(0.1, 0.75, 1.0))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_in_no_mean(broken: float) -> None:
    balancer = gs.DynamicWeightAverage(2)
    for epoch in ([(2.0, 2.0)], [(1.0, broken), (1.0, 6.0)]):
        for values in epoch:
            call(balancer, *values)
        balancer.end_epoch()
    assert balancer.weights.tolist() == pytest.approx(expected(0.5, 3.0))


def test_a_task_at_loss_zero_does_not_break_the_others() -> None:
    balancer = gs.DynamicWeightAverage(2)
    for _ in range(3):
        call(balancer, 0.0, 1.0)
        balancer.end_epoch()
    assert balancer.weights.tolist() == [1.0, 1.0]
