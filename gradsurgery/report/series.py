"""What a noisy series of numbers says: its mean with the error of it, and where its level changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 400  # a longer series is cut into so many means first: the time that it takes does not depend on the run's length
SHORTEST = 10  # recorded steps (or bins) of a stretch: over fewer, a mean of cosines says nothing yet
ALIKE = 0.8  # ρ is taken for no more: a level that changes smoothly looks like more, too
LEVELS = 4.0  # by how many standard errors two neighbouring levels have to differ; of 400 random places the best comes to 3.5


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, which allows for neighbours that resemble each other; NaN for nothing."""

    value: float
    error: float
    count: int


def mean(values: NDArray[np.float64]) -> Mean:
    """Of finite numbers."""
    if not len(values):
        return Mean(np.nan, np.nan, 0)
    return Mean(float(values.mean()), _error(values - values.mean()), len(values))


def _error(residuals: NDArray[np.float64]) -> float:
    """The standard error of a mean, of an AR(1) process with these residuals: sd sqrt((1 + ρ) / ((1 − ρ) n)); NaN for one."""
    count = len(residuals)
    if count < 2:
        return np.nan
    squares = float(residuals @ residuals)
    if squares == 0:
        return 0.0
    resemblance = min(max(float(residuals[1:] @ residuals[:-1]) / squares, 0.0), 1 - 2 / (count + 1))
    return float(np.sqrt(squares / (count - 1) / count * (1 + resemblance) / (1 - resemblance)))


def resemblance(values: NDArray[np.float64]) -> float:
    """ρ of an AR(1) process whose level may change now and then: from all but the largest differences, so that no change counts."""
    if len(values) < SHORTEST:
        return 0.0
    few = 2 + len(values) // 10
    one, two = (float(np.sort((values[apart:] - values[:-apart]) ** 2)[:-few].mean()) for apart in (1, 2))
    return min(max(two / one - 1, 0.0), ALIKE) if one > 0 else 0.0


def inflation(values: NDArray[np.float64]) -> float:
    """By how much the error of a mean is larger than that of as many independent numbers."""
    rho = resemblance(values)
    return float(np.sqrt((1 + rho) / (1 - rho)))


def scatter(values: NDArray[np.float64], rho: float) -> float:
    """What a mean over n neighbours errs by, times √n: the deviation of single numbers around their level, and ``inflation``."""
    if len(values) < 2:
        return 0.0
    return float(np.sqrt(np.mean(np.diff(values) ** 2) / (2 * (1 - rho)) * (1 + rho) / (1 - rho)))


def running_window(count: int) -> int:
    """A twentieth of the run."""
    return max(1, count // 20)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over a centred window of a twentieth of the run, shorter at both ends; NaN is left out."""
    window = running_window(len(values))
    if window == 1:
        return values
    known = np.isfinite(values)
    totals = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    places = np.arange(len(values))
    low, high = np.maximum(places - (window - 1) // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (totals[high] - totals[low]) / np.maximum(number, 1), np.nan)


def edges(count: int, bins: int = BINS) -> NDArray[np.int64]:
    """Where the bins of a series begin, and its end: as many as there are numbers, and at most ``bins``."""
    return np.unique(np.linspace(0, count, min(count, bins) + 1).astype(np.int64))


def levels(values: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The stretches [first, end) between changes of the level, by binary segmentation.

    A stretch is cut where its two sides' means differ most in units of their error, if by more than LEVELS. What counts as noise is
    what differs from one number to the next, and more of it where neighbours resemble each other.
    """
    if not len(values):
        return []
    cuts = edges(len(values))
    sizes = np.diff(cuts)
    means = np.add.reduceat(values, cuts[:-1]) / sizes
    noise = scatter(means, resemblance(means))
    found, pending = [], [(0, len(means))]
    while pending:
        first, end = pending.pop()
        cut = _best_cut(means[first:end], noise)
        if cut is None:
            found.append((int(cuts[first]), int(cuts[end])))
        else:
            pending += [(first, first + cut), (first + cut, end)]
    return sorted(found)


def _best_cut(values: NDArray[np.float64], noise: float) -> int | None:
    count = len(values)
    if count < 2 * SHORTEST:
        return None
    left = np.arange(SHORTEST, count - SHORTEST + 1)
    totals = np.cumsum(values)
    difference = totals[left - 1] / left - (totals[-1] - totals[left - 1]) / (count - left)
    size = np.abs(difference) * np.sqrt(left * (count - left) / count)
    best = int(size.argmax())
    return int(left[best]) if size[best] > LEVELS * noise else None


@dataclass(frozen=True)
class Stretch:
    """Recorded steps in a row.

    Attributes:
        first: step.
        last: step.
        mean: over it.
        negative: the share of steps below zero.
    """

    first: int
    last: int
    mean: Mean
    negative: float


def low_stretches(steps: NDArray[np.int64], values: NDArray[np.float64], below: float, errors: float) -> list[Stretch]:
    """The stretches whose mean is at most ``below``, and below zero by at least ``errors`` standard errors of the mean."""
    kept: list[tuple[int, int]] = []
    residuals = np.zeros_like(values)
    for first, end in levels(values):
        level = values[first:end].mean()
        residuals[first:end] = values[first:end] - level
        if level <= below:
            if kept and kept[-1][1] == first:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((first, end))
    found = []
    rho = resemblance(values)  # cutting takes out of the residuals what made them alike: the error is no less than this says
    for first, end in kept:
        here = values[first:end]
        error = max(_error(residuals[first:end]), scatter(here, rho) / len(here) ** 0.5)
        part = Mean(float(here.mean()), error, end - first)
        if part.count >= SHORTEST and part.value <= -errors * part.error:
            found.append(Stretch(int(steps[first]), int(steps[end - 1]), part, float((values[first:end] < 0).mean())))
    return found
