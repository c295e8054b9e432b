"""What a metric's numbers mean: which way is better, and how far from perfect a model is compared with the floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SUFFIXES = {" m": "_m", " px": "_px", "°": "_deg"}  # how names in files end, by the unit that they stand for


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    Args:
        name: "task/what_it_measures", the name in log.csv (there behind "val/") and metrics.json.
        best: the value of a perfect model: 0 for an error, above 0 (1 for an accuracy) where higher is better.
        unit: as it is printed right behind a value, such as " m".
        primary: it stands for its task in the score, after each epoch and in the note.
    """

    name: str
    best: float = 0.0
    unit: str = ""
    primary: bool = False

    @property
    def task(self) -> str:
        return self.name.partition("/")[0]

    @property
    def words(self) -> str:
        """What it measures, in words, without the unit."""
        return self.name.partition("/")[2].removesuffix(SUFFIXES.get(self.unit, "")).replace("_", " ")

    @property
    def higher_is_better(self) -> bool:
        return self.best > 0

    def beats(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value > other if self.higher_is_better else value < other


def score(values: Mapping[str, float], floors: Mapping[str, float], metrics: Sequence[Metric]) -> float:
    """Mean over tasks of 1 − |best − value| / |best − floor|, by each task's primary metric: 0 is the floor's score, 1 is perfect.

    Tasks without a value, and those whose floor is perfect already, are left out; NaN when none is left.
    """
    gains = []
    for metric in metrics:
        if metric.primary and metric.name in values and metric.name in floors:
            distance = abs(metric.best - floors[metric.name])
            if distance > 0:
                gains.append(1 - abs(metric.best - values[metric.name]) / distance)
    return sum(gains) / len(gains) if gains else float("nan")
