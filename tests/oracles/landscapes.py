"""Toy problems of two papers: two losses of two parameters with their gradients, in plain floats."""

from __future__ import annotations

import math

Pair = tuple[float, float]
Value = tuple[Pair, tuple[Pair, Pair]]  # the two losses, and the gradient of each

FLOOR = 5e-6
FRONT = 7.0  # the second landscape's front: |x| <= FRONT, between the minima of the two losses


def log_abs(value: float) -> Pair:
    """log(max(|value|, FLOOR)) and its derivative."""
    return (math.log(abs(value)), 1 / value) if abs(value) > FLOOR else (math.log(FLOOR), 0.0)


def ravines(point: Pair) -> Value:
    """L1 = 20 log|x/2 + tanh y|, L2 = 25 log|x/2 - tanh y + 2|: two curved ravines that meet at (-2, inf), where both are least.

    Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, Figure 1.
    """
    x, y = point
    tanh = math.tanh(y)
    slope = 1 - tanh * tanh
    (a, da), (b, db) = log_abs(x / 2 + tanh), log_abs(x / 2 - tanh + 2)
    return (20 * a, 25 * b), ((10 * da, 20 * slope * da), (12.5 * db, -25 * slope * db))


def basin(point: Pair, scale: float = 1.0) -> Value:
    """Two ravines for y > 0 and, below, a basin with a front of best compromises; ``scale`` multiplies the first loss.

    For y > 0 the losses are tanh(y/2) (log|(-x - 7)/2 + tanh y| + 6) and tanh(y/2) (log|(3 - x)/2 - tanh y + 2| + 6), for y < 0
    tanh(-y/2) (((x -+ 7)^2 + (y + 8)^2 / 10) / 10 - 20).

    Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021, section 5.1; with a scale of 0.1
    Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, Figure 1.
    """
    x, y = point
    tanh = math.tanh(y)
    slope = 1 - tanh * tanh
    (f, df), (h, dh) = log_abs((-x - 7) / 2 + tanh), log_abs((3 - x) / 2 - tanh + 2)
    p, q = (((x - at) ** 2 + (y + 8) ** 2 / 10) / 10 - 20 for at in (7, -7))
    above, below = max(math.tanh(y / 2), 0.0), max(math.tanh(-y / 2), 0.0)
    dabove = (1 - above * above) / 2 if y > 0 else 0.0
    dbelow = (below * below - 1) / 2 if y < 0 else 0.0
    losses = scale * (above * (f + 6) + below * p), above * (h + 6) + below * q
    bowl = below * (y + 8) / 50
    first = -above * df / 2 + below * (x - 7) / 5, above * slope * df + dabove * (f + 6) + bowl + dbelow * p
    second = -above * dh / 2 + below * (x + 7) / 5, -above * slope * dh + dabove * (h + 6) + bowl + dbelow * q
    return losses, ((scale * first[0], scale * first[1]), second)


def front(x: float) -> Pair:
    """The point of the basin's front above x in [-FRONT, FRONT]: there the two gradients are opposed, or one of them is zero."""

    def cross(y: float) -> float:
        _, (first, second) = basin((x, y))
        return first[0] * second[1] - first[1] * second[0]

    low, high = -12.0, -4.0
    assert cross(low) * cross(high) < 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cross(low) * cross(middle) > 0 else (low, middle)
    return x, (low + high) / 2


def missed(point: Pair) -> float:
    """How much better both losses of the basin could be at once, on its front; 0 for a point of the front."""
    losses, _ = basin(point)

    def better(x: float) -> Pair:
        there, _ = basin(front(x))
        return losses[0] - there[0], losses[1] - there[1]

    low, high = -FRONT, FRONT  # along the front the first loss falls and the second grows
    for _ in range(40):
        middle = (low + high) / 2
        first, second = better(middle)
        low, high = (middle, high) if first < second else (low, middle)
    return min(better((low + high) / 2))
