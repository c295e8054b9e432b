"""What a log says in numbers: shares, conflicts, drifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report.run import Run
from gradsurgery.report.series import SHORTEST, Mean, Stretch, low_stretches, mean, resemblance, scatter

SETTLED = 0.05  # a weight that moves by less than this share of itself in the last quarter counts as settled
MOVED = 3.0  # standard errors by which a weight's means have to differ, so that its noise is no drift
CONFLICT = -0.05  # a mean cosine above is as good as orthogonal: in the sum of two equal lengths each task loses 5 % of its descent
SURE = 4.0  # standard errors by which a mean cosine has to be below zero; the stretches are picked, so two would not do
FINE = 1e-9  # of a number: less is rounding
LASTING = 0.1  # share of the steps: what is shorter passes by itself
MODERATE, STRONG = -0.1, -0.4  # mean cosines from which a conflict counts as moderate, or strong; 96° and 114°


@dataclass(frozen=True)
class Shares:
    """How much each task holds of the gradients' lengths and of the summed (balanced) loss; shares sum to 1."""

    gradient: dict[str, float]
    loss: dict[str, float]


@dataclass(frozen=True)
class Conflict:
    """One pair of tasks over the steps in which both had a gradient; NaN where there are no such steps."""

    one: str
    other: str
    column: str
    mean: Mean
    rate: float  # share of steps with cosine < 0
    lowest: float
    mean_in_conflict: float
    last_quarter: float  # mean cosine
    stretches: tuple[Stretch, ...]  # in which the pair conflicts

    @property
    def name(self) -> str:
        return f"{self.one} – {self.other}"

    @property
    def steps(self) -> int:
        return self.mean.count

    @property
    def lasting(self) -> float:
        """The share of the steps that are in stretches of conflict."""
        return sum(stretch.mean.count for stretch in self.stretches) / self.steps if self.steps else 0.0

    @property
    def depth(self) -> float:
        """The mean cosine over those stretches."""
        return pooled(self.stretches)

    @property
    def leaning(self) -> bool:
        """As deep on average, but over too few steps, or too much alike, for a stretch of conflict."""
        return not self.stretches and self.mean.value <= MODERATE

    @property
    def worth_acting(self) -> bool:
        """Long enough, and deep enough."""
        return bool(self.stretches) and self.lasting >= LASTING and self.depth <= MODERATE


@dataclass(frozen=True)
class Drift:
    """A weight's mean over the third and over the last quarter of the steps.

    Attributes:
        error: of the difference of the two; 0 where they are too few to tell.
        still: the weight never moved.
    """

    third: float
    last: float
    error: float
    still: bool

    @property
    def settled(self) -> bool:
        return abs(self.last - self.third) <= max(SETTLED * abs(self.third), MOVED * self.error)


def pooled(stretches: Sequence[Stretch]) -> float:
    """The mean over all steps of the stretches."""
    count = sum(stretch.mean.count for stretch in stretches)
    return sum(stretch.mean.value * stretch.mean.count for stretch in stretches) / count if count else float("nan")


def shares(run: Run, tasks: Sequence[str]) -> Shares:
    """Means over the logged steps in which every one of the tasks was present; NaN where there are none.

    A trainer logs losses before its balancer. A monitor logs what surgery was told, which is weighed already, or it is not known.
    """
    weights = [run.column(f"balance/{task}") if balanced(run) else np.ones(len(run.steps)) for task in tasks]
    weights = [np.where(np.isfinite(weight), weight, 1.0) for weight in weights]
    losses = [np.abs(run.column(f"loss/{task}") * weight) for task, weight in zip(tasks, weights, strict=True)]
    return Shares(_mean_shares([run.column(f"norm/{task}") for task in tasks], tasks), _mean_shares(losses, tasks))


def balanced(run: Run) -> bool:
    """Whether the losses in the log are known to lack the balancer's weights."""
    return run.balancer not in (None, "none")


def _mean_shares(columns: Sequence[NDArray[np.float64]], tasks: Sequence[str]) -> dict[str, float]:
    table = np.array(columns)
    with np.errstate(over="ignore"):  # two numbers of 1e308: their sum says nothing
        total = table.sum(0)
    here = np.isfinite(total) & (total > 0)
    parts = (table[:, here] / total[here]).mean(1) if here.any() else np.full(len(tasks), np.nan)
    return {task: float(part) for task, part in zip(tasks, parts, strict=True)}


def conflicts(run: Run) -> list[Conflict]:
    """Every pair of which the log has a cosine."""
    return [_conflict(run, *pair, column) for pair, column in run.pairs.items()]


def _conflict(run: Run, one: str, other: str, column: str) -> Conflict:
    steps, cosines = run.series(column)
    cosines = cosines.clip(-1.0, 1.0)
    negative = cosines[cosines < 0]
    return Conflict(
        one, other, column, mean(cosines),
        rate=len(negative) / len(cosines) if len(cosines) else float("nan"),
        lowest=float(cosines.min()) if len(cosines) else float("nan"),
        mean_in_conflict=mean(negative).value,
        last_quarter=mean(cosines[len(cosines) * 3 // 4 :]).value,
        stretches=tuple(low_stretches(steps, cosines, CONFLICT, SURE)),
    )  # fmt: skip


def drift(run: Run, column: str) -> Drift:
    """How far a weight still moved at the end of the run."""
    _, values = run.series(column)
    count = len(values)
    third, last = mean(values[count // 2 : count * 3 // 4]).value, mean(values[count * 3 // 4 :]).value
    still = bool(count) and bool(values.max() - values.min() <= FINE * np.abs(values).max())
    half = values[count // 2 :]
    error = scatter(half, resemblance(half)) * (4 / len(half)) ** 0.5 if len(half) >= SHORTEST else 0.0
    return Drift(third, last, error, still)


def start_and_end(values: NDArray[np.float64]) -> tuple[float, float]:
    """Medians over the first and the last tenth, of five numbers at least; NaN for nothing."""
    if not len(values):
        return float("nan"), float("nan")
    few = min(max(5, len(values) // 10), -(-len(values) // 2))
    return float(np.median(values[:few])), float(np.median(values[-few:]))
