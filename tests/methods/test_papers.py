"""What papers show on toy problems of two losses and two parameters happens here too, under the papers' settings."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracles.landscapes import FRONT, Pair, Value, basin, front, missed, ravines

import gradsurgery as gs

RATE = 1e-3  # Adam's, as in both papers
KEPT = 1000  # every so many steps the point is kept

Landscape = Callable[[Pair], Value]


def descend(landscape: Landscape, start: Pair, steps: int, method: str, **options: object) -> list[Pair]:
    """Where Adam goes with the method's gradients, every KEPT steps."""
    grads, out = torch.empty(2, 2, dtype=torch.float64), torch.empty(2, dtype=torch.float64)
    written, read = grads.numpy(), out.numpy()
    (x, y), m, n, u, v = start, 0.0, 0.0, 0.0, 0.0  # m, n: first moments; u, v: second
    path = []
    for step in range(1, steps + 1):
        written[...] = landscape((x, y))[1]
        gs.aggregate(grads, method, out=out, **options)
        g, h = read.tolist()
        m, n, u, v = 0.9 * m + 0.1 * g, 0.9 * n + 0.1 * h, 0.999 * u + 0.001 * g * g, 0.999 * v + 0.001 * h * h
        rate, bias = RATE / (1 - 0.9**step), 1 - 0.999**step
        x, y = x - rate * m / ((u / bias) ** 0.5 + 1e-8), y - rate * n / ((v / bias) ** 0.5 + 1e-8)
        if step % KEPT == 0:
            path.append((x, y))
    return path


@pytest.mark.parametrize("landscape", [ravines, basin, partial(basin, scale=0.125)])
def test_the_gradients_are_those_of_the_losses(landscape: Landscape) -> None:
    draw = random.Random(0)
    for _ in range(500):
        point, h = (draw.uniform(-9, 9), draw.uniform(-9, 9)), 1e-6
        gradients = landscape(point)[1]
        for loss, gradient in enumerate(gradients):
            for axis, found in enumerate(gradient):
                ahead, behind = ([c + s * h * (k == axis) for k, c in enumerate(point)] for s in (1, -1))
                slope = (landscape((ahead[0], ahead[1]))[0][loss] - landscape((behind[0], behind[1]))[0][loss]) / (2 * h)
                assert slope == pytest.approx(found, rel=1e-6, abs=1e-6 * (1 + abs(found) ** 3))  # steep where it bends


def test_the_front_is_where_nothing_is_missed() -> None:
    for x in (-7.0, -3.0, 0.0, 5.0, 7.0):
        on = front(x)
        _, ((a, b), (c, d)) = basin(on)
        assert abs(a * d - b * c) < 1e-9
        assert a * c + b * d <= 1e-9
        assert abs(missed(on)) < 1e-9
        assert missed((x, on[1] + 1.0)) > 1e-3
    assert basin(front(0.0))[0] == pytest.approx((-15.0916, -15.0916), abs=1e-4)  # the least average loss
    assert abs(missed((-FRONT, -8.0))) < 0.02
    assert missed((-FRONT - 2, -8.0)) > 0.3


# Yu et al. 2020, Figure 1: from (0.5, -3) with Adam at 1e-3 (500,000 steps there; what happens has happened before 270,000).


@pytest.mark.slow
def test_the_sum_stays_in_the_first_ravine() -> None:
    """It reaches the bottom of the first loss's ravine and crosses it back and forth, while the second loss hardly matters."""
    for point in descend(ravines, (0.5, -3.0), 60_000, "sum"):
        assert point[0] > 1.5
        assert point[1] < -1
        assert ravines(point)[0][1] > 30


@pytest.mark.slow
def test_pcgrad_follows_the_ravine_to_where_both_losses_are_least() -> None:
    for point in descend(ravines, (0.5, -3.0), 270_000, "pcgrad")[-20:]:
        assert abs(point[0] + 2) < 0.1
        assert point[1] > 3
        assert max(ravines(point)[0]) < -70


def test_upgrad_of_two_tasks_is_half_of_pcgrad() -> None:
    """What the figure shows of the one therefore holds for the other."""
    for _ in range(50):
        grads = torch.randn(2, 3, dtype=torch.float64)
        assert torch.allclose(2 * gs.aggregate(grads, "upgrad"), gs.aggregate(grads, "pcgrad"), rtol=1e-12, atol=1e-12)


# Liu et al. 2021, Figure 1, and Navon et al. 2022, Figure 1: starts above the basin lead through a ravine, those beside it do not.

ABOVE = ((-8.5, 7.5), (9.0, 9.0))
BESIDE = ((-8.5, -5.0), (-7.5, -0.5), (9.0, -1.0))
AVERAGE = front(0.0)  # the least average loss


def end(start: Pair, method: str, scale: float = 1.0, steps: int = 60_000) -> Pair:
    """Where a method has arrived, mostly in fewer steps than the papers' 100,000."""
    return descend(partial(basin, scale=scale), start, steps if start in ABOVE else 20_000, method)[-1]


def excess(point: Pair) -> float:
    """The average loss over the least one."""
    return sum(basin(point)[0]) / 2 - sum(basin(AVERAGE)[0]) / 2


@pytest.mark.slow
def test_the_average_gets_stuck_above_the_basin() -> None:
    for start in ABOVE:
        assert missed(end(start, "mean")) > 15
    for start in BESIDE:
        assert end(start, "mean") == pytest.approx(AVERAGE, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", [*ABOVE, *BESIDE], ids=str)
@pytest.mark.parametrize("method", ["cagrad"])
def test_cagrad_reaches_the_least_average_from_everywhere(method: str, start: Pair) -> None:
    assert end(start, method, steps=100_000) == pytest.approx(AVERAGE, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", [*ABOVE, *BESIDE], ids=str)
@pytest.mark.parametrize("method", ["pcgrad", "upgrad", "mgda", "imtlg", "nashmtl", "fairgrad"])
def test_others_stop_where_they_meet_the_front(method: str, start: Pair) -> None:
    """All reach the front, also from above, and none looks for the least average: each start has its end."""
    point = end(start, method)
    assert missed(point) < 1e-3
    assert excess(point) > 0.3
    assert point[0] * start[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("start", BESIDE, ids=str)
@pytest.mark.parametrize("method", ["nashmtl", "fairgrad"])
def test_the_scale_of_a_loss_does_not_matter_to_nash(method: str, start: Pair) -> None:
    """Where one loss counts an eighth, the bargain is struck at the same point."""
    assert end(start, method, scale=0.125) == pytest.approx(end(start, method), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", BESIDE, ids=str)
def test_the_scale_of_a_loss_matters_to_the_average(start: Pair) -> None:
    assert abs(end(start, "mean", scale=0.125)[0] - end(start, "mean")[0]) > 1
