"""What a monitor keeps of a step, and what layers came to over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .statistics import Statistics
from .transfer import Numbers


class Layers(NamedTuple):
    """One step, group by group.

    Attributes:
        groups: their names. [G]
        tasks: their names. [T]
        present: which tasks had a gradient. [T]
        grams: K of each group, None in a step without K. [G, T, T]
        weights: [G, T]
    """

    groups: tuple[str, ...]
    tasks: tuple[str, ...]
    present: tuple[bool, ...]
    grams: Numbers | None
    weights: Numbers


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        step: counted as by ``Statistics``.
        values: by name: what ``Statistics.scalars`` returns, ``balance/a`` and ``variance/a`` of a balancer, ``norm_mean`` and
            ``norm_deviation``, and what was logged.
        layers: where surgery is done by groups of tensors.
        amends: whether this is more of a row that was there before, as of values that were logged late, rather than a step run
            again.
    """

    step: int
    values: dict[str, float]
    layers: Layers | None = field(default=None, repr=False)
    amends: bool = field(default=False, repr=False)


def layers_of(step: Statistics) -> Layers | None:
    """What is known of a step's groups; None without groups, or without weights."""
    host = step._host
    if not step.groups or host.weights is None:
        return None
    return Layers(step.groups, step.tasks, step.present, host.gram, host.weights)


def window_of_layers(rows: Sequence[Row]) -> list[tuple[str, int, dict[str, float]]]:
    """Each layer's name, the number of steps it was in, and means over these: of norms, weights and cosines where they are defined.

    ``conflict_rate/a-b`` is the share of steps with <g_a, g_b> < 0, of those in which both gradients are there and finite.
    """
    given = [row.layers for row in rows if row.layers is not None]
    groups = list(dict.fromkeys(group for layers in given for group in layers.groups))
    tasks = list(dict.fromkeys(task for layers in given for task in layers.tasks))
    S, G, T = len(given), len(groups), len(tasks)
    place, column = {name: g for g, name in enumerate(groups)}, {name: t for t, name in enumerate(tasks)}
    K, w = np.full((S, G, T, T), np.nan), np.full((S, G, T), np.nan)
    steps = np.zeros(G, dtype=np.int64)
    for s, layers in enumerate(given):
        at = [place[group] for group in layers.groups]
        here = [t for t, present in enumerate(layers.present) if present]
        to = [column[layers.tasks[t]] for t in here]
        steps[at] += 1
        w[s][np.ix_(at, to)] = layers.weights[:, here]
        if layers.grams is not None:
            K[s][np.ix_(at, to, to)] = layers.grams[:, here][:, :, here]
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.diagonal(K, axis1=2, axis2=3))
        cosines = K / (norms[..., :, None] * norms[..., None, :])
        conflicts = np.where(np.isfinite(K), K < 0, np.nan)
    columns = {f"norm/{task}": _mean(norms[:, :, t]) for t, task in enumerate(tasks)}
    columns |= {f"weight/{task}": _mean(w[:, :, t]) for t, task in enumerate(tasks)}
    pairs = list(combinations(range(T), 2))
    columns |= {f"cosine/{tasks[i]}-{tasks[j]}": _mean(cosines[:, :, i, j]) for i, j in pairs}
    columns |= {f"conflict_rate/{tasks[i]}-{tasks[j]}": _mean(conflicts[:, :, i, j]) for i, j in pairs}
    numbers = {name: means.tolist() for name, means in columns.items()}
    return [
        (group, int(steps[g]), {name: means[g] for name, means in numbers.items() if means[g] == means[g]})
        for g, group in enumerate(groups)
    ]


def _mean(numbers: Numbers) -> Numbers:
    """Over the steps in which a number is finite; NaN where there is none. [S, G] -> [G]"""
    fine = np.isfinite(numbers)
    with np.errstate(all="ignore"):
        mean: Numbers = np.where(fine, numbers, 0.0).sum(0) / fine.sum(0)
    return mean
