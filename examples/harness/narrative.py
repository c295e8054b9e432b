"""What a run's log says, in numbers and in sentences: which task dominates, how gradients conflict, whether weights settled."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from harness.problem import Series

SETTLED = 0.05  # a weight that moves by less than this share of itself in the last quarter counts as settled
EVEN = 1.25  # mean gradients whose lengths differ by less than this factor count as even


@dataclass(frozen=True)
class Shares:
    """How much each task holds of the gradient at the representation and of the summed (balanced) loss; shares sum to 1."""

    gradient: dict[str, float]
    loss: dict[str, float]


@dataclass(frozen=True)
class Conflict:
    """One pair of tasks over the steps in which both had a gradient. Cosines are NaN where there are no such steps."""

    one: str
    other: str
    steps: int
    rate: float  # share of steps with cosine < 0
    mean: float
    lowest: float
    mean_in_conflict: float
    last_quarter: float  # mean cosine


@dataclass(frozen=True)
class Drift:
    """A weight's mean over the third and over the last quarter of the steps."""

    third: float
    last: float

    @property
    def settled(self) -> bool:
        return abs(self.last - self.third) <= SETTLED * abs(self.third)


def shares(log: Series, tasks: Sequence[str]) -> Shares:
    """Means over the logged steps in which every task was present; NaN where there are none."""
    norms = [{task: log[f"norm/{task}"][step] for task in tasks} for step in _common_steps(log, "norm", tasks)]
    losses = [
        {task: abs(log[f"loss/{task}"][step] * log[f"balance/{task}"].get(step, 1.0)) for task in tasks}
        for step in _common_steps(log, "loss", tasks)
    ]
    return Shares(_mean_shares(norms, tasks), _mean_shares(losses, tasks))


def _mean_shares(steps: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> dict[str, float]:
    totals = [(values, sum(values.values())) for values in steps]
    return {task: _mean([values[task] / total for values, total in totals if total > 0]) for task in tasks}


def conflict(log: Series, one: str, other: str) -> Conflict:
    """The cosine between two tasks' gradients over the run."""
    cosines = list(log[f"cosine/{one}-{other}"].values())
    negative = [value for value in cosines if value < 0]
    return Conflict(
        one, other, len(cosines),
        rate=len(negative) / len(cosines) if cosines else float("nan"),
        mean=_mean(cosines), lowest=min(cosines, default=float("nan")), mean_in_conflict=_mean(negative),
        last_quarter=_mean(cosines[len(cosines) * 3 // 4 :]),
    )  # fmt: skip


def drift(log: Series, column: str) -> Drift:
    """How far a weight still moved at the end of the run."""
    values = list(log[column].values())
    return Drift(_mean(values[len(values) // 2 : len(values) * 3 // 4]), _mean(values[len(values) * 3 // 4 :]))


def dominance_sentences(log: Series, tasks: Sequence[str], place: str) -> list[str]:
    """Who holds the gradient, who holds the loss."""
    norms = {task: _mean(list(log[f"norm/{task}"].values())) for task in tasks if log[f"norm/{task}"]}
    sentences = [f"{task} never had a gradient." for task in tasks if task not in norms]
    if len(norms) < 2:
        return [*sentences, "There is nothing to compare."]
    part = shares(log, list(norms))
    strongest, weakest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    heaviest = max(norms, key=part.loss.__getitem__)
    ratio = norms[strongest] / norms[weakest] if norms[weakest] > 0 else float("inf")
    balanced = "balanced " if any(log[f"balance/{task}"] for task in norms) else ""
    sentences.append(f"Of the gradient length that arrives at {place}, each task holds: {_listed(part.gradient)}.")
    if ratio < EVEN:
        sentences.append(f"No task dominates there: the mean lengths differ by a factor of only {ratio:.2f}.")
    else:
        sentences.append(f"There {strongest} dominates: its gradient is on average {ratio:.2f} times as long as {weakest}'s.")
    sentences.append(f"Of the summed {balanced}loss: {_listed(part.loss)}; {heaviest} holds the most.")
    if heaviest != strongest and ratio >= EVEN:
        sentences.append(f"Loss and gradient disagree: {heaviest} has the larger loss, {strongest} the stronger pull on the trunk.")
    return sentences


def conflict_sentences(log: Series, tasks: Sequence[str]) -> list[str]:
    """How often, and how strongly, each pair of tasks pulls the trunk apart."""
    sentences = []
    for one, other in combinations(tasks, 2):
        pair = conflict(log, one, other)
        if not pair.steps:
            sentences.append(f"{one} and {other} never had a gradient in the same logged step.")
            continue
        sentence = (
            f"{one} and {other} conflict (negative cosine) in {pair.rate:.0%} of {pair.steps} logged steps; "
            f"the cosine is {pair.mean:+.3f} on average, {pair.last_quarter:+.3f} in the last quarter"
        )
        if pair.rate > 0:
            sentence += f", {pair.mean_in_conflict:+.3f} where they conflict, {pair.lowest:+.3f} at worst"
        sentences.append(sentence + f": {_strength(pair)}.")
    return sentences


def balance_sentences(log: Series, tasks: Sequence[str], *, balancer: str, method: str) -> list[str]:
    """Where the loss weights and the method's weights went, and whether they had settled by the end."""
    sentences = []
    for label, column in ((f"The {balancer} balancer's loss weights", "balance"), (f"{method}'s gradient weights", "weight")):
        moved = {task: drift(log, f"{column}/{task}") for task in tasks if log[f"{column}/{task}"]}
        if not moved:
            continue
        if not all(math.isfinite(one.third) and math.isfinite(one.last) for one in moved.values()):
            sentences.append(f"{label}: too few logged steps to tell whether they settled.")
            continue
        if all(one.third == one.last for one in moved.values()):
            sentences.append(f"{label} stayed at {', '.join(f'{task} {one.last:.3f}' for task, one in moved.items())}.")
            continue
        listed = ", ".join(f"{task} {one.third:.3f} → {one.last:.3f}" for task, one in moved.items())
        wandering = [task for task, one in moved.items() if not one.settled]
        verdict = f"{' and '.join(wandering)} still drifted by more than {SETTLED:.0%}" if wandering else "they had settled"
        sentences.append(f"{label}, mean of the third quarter of the run → of the last: {listed}; {verdict}.")
    if balancer == "none":
        sentences.append("No balancer ran: every task's loss entered with weight 1.")
    return sentences


def _strength(pair: Conflict) -> str:
    if pair.rate == 0:
        return "no conflict"
    if pair.mean_in_conflict > -0.1:
        return "weak conflicts, close to orthogonal"
    return "moderate conflicts" if pair.mean_in_conflict > -0.4 else "strong conflicts"


def _common_steps(log: Series, kind: str, tasks: Sequence[str]) -> list[int]:
    return sorted(set.intersection(*(set(log[f"{kind}/{task}"]) for task in tasks)))


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {part:.0%}" for task, part in parts.items())


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
