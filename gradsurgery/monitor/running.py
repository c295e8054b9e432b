"""What goes on over many steps: the length of the combined gradient, and how often something was wrong."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from .rows import Row
from .statistics import Statistics

STEPS = 100
"""Over how many of the last steps the mean and the deviation of |out| are."""

Norms = list[tuple[int, float]]
"""Steps, and |out| in them."""


class Running:
    """Mean and standard deviation of |out| over the last steps, and counts of what was wrong.

    The same numbers whether a run was resumed or not, bit by bit: they are a function of the last steps' |out| alone.

    Attributes:
        counts: "nonfinite" and "absent" steps by task.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {"nonfinite": Counter(), "absent": Counter()}
        self._norms: deque[tuple[int, float]] = deque(maxlen=16 * STEPS)  # finite ones; more than are needed, to go back

    def count(self, step: Statistics, nonfinite: bool) -> None:
        """One more step; whether some gradient was not finite."""
        if nonfinite:
            self.counts["nonfinite"].update(step.nonfinite_tasks)
        if step.absent:
            self.counts["absent"].update(task for task, here in zip(step.tasks, step.present, strict=True) if not here)

    def complete(self, rows: Sequence[Row], before: Callable[[int, int], Norms]) -> None:
        """Puts ``norm_mean`` and ``norm_deviation`` into rows that have a norm.

        Args:
            rows: the next ones; where the first is of an earlier step, what was known from there on is forgotten.
            before: gives what else is known of the last (argument 2) steps before one (argument 1).
        """
        first = rows[0].step
        back = not self._norms
        while self._norms and self._norms[-1][0] >= first:
            self._norms.pop()
            back = True
        if back and len(self._norms) < STEPS:
            earlier = before(first, STEPS)
            if len(earlier) > len(self._norms):
                self._norms.clear()
                self._norms.extend(earlier)
        known = [norm for _, norm in self._norms][-STEPS:]
        came = [(row.step, row.values["norm"]) for row in rows if math.isfinite(row.values.get("norm", math.nan))]
        norms = np.array(known + [norm for _, norm in came])
        end = len(known)
        for row in rows:
            norm = row.values.get("norm")
            if norm is None:
                continue
            end += math.isfinite(norm)
            last = norms[max(end - STEPS, 0) : end]
            if len(last):
                mean = float(np.add.reduce(last)) / len(last)
                apart = last - mean
                row.values["norm_mean"] = mean
                row.values["norm_deviation"] = math.sqrt(float(np.add.reduce(apart * apart)) / len(last))
        self._norms.extend(came)
