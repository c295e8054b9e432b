"""The numbers of many steps at once, for logs: K and w are small, so that what costs is the number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from .transfer import Numbers

if TYPE_CHECKING:
    from .statistics import Statistics

UNKNOWN = -1.0  # whether a step is stationary, where no solver looked


def scalars(steps: Sequence[Statistics]) -> list[dict[str, float]]:
    """A flat dictionary a step, each as ``Statistics.scalars`` says; about ten microseconds a step where there are many."""
    alike: dict[object, list[int]] = {}
    for s, step in enumerate(steps):
        alike.setdefault(_layout(step), []).append(s)
    result: list[dict[str, float]] = [{}] * len(steps)
    for places in alike.values():
        names, columns = _columns([steps[s] for s in places])
        for s, numbers in zip(places, np.stack(columns, 1).tolist(), strict=True):
            result[s] = dict(zip(names, numbers, strict=True))
    for step, values in zip(steps, result, strict=True):
        if values.get("stationary") == UNKNOWN:
            del values["stationary"]
        values.update(_told(step))
    return result


def _layout(step: Statistics) -> object:
    """What steps have in common that can be computed together."""
    return step.tasks, step.present, tuple(None if numbers is None else numbers.shape for numbers in step._host[:4])


def _told(step: Statistics) -> dict[str, float]:
    """The losses that were told."""
    return {f"loss/{task}": loss for task, loss in zip(step.tasks, step._host.losses, strict=False) if loss is not None}


def _columns(steps: Sequence[Statistics]) -> tuple[list[str], list[Numbers]]:
    """Names, and numbers of all steps, which are of one layout."""
    first = steps[0]
    tasks, T = first.tasks, len(first.tasks)
    here = [t for t, present in enumerate(first.present) if present]
    K, w, status, combined = (_stacked([step._host[part] for step in steps]) for part in range(4))
    names: list[str] = []
    columns: list[Numbers] = []

    def add(name: str, numbers: Numbers) -> None:
        names.append(name)
        columns.append(numbers)

    with np.errstate(all="ignore"):
        grams = None if K is None else K.reshape(len(steps), -1, T, T)
        gram = None if grams is None else grams.sum(1)
        lengths = None if gram is None else np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
        if lengths is not None:
            for t in here:
                add(f"norm/{tasks[t]}", lengths[:, t])
        if w is not None:
            w = np.where(np.asarray(first.present), w.reshape(len(steps), -1, T), 0.0)
            mean = w.mean(1)
            for t in here:
                add(f"weight/{tasks[t]}", mean[:, t])
        if grams is not None and gram is not None and lengths is not None:
            for i, j in combinations(here, 2):
                add(f"cosine/{tasks[i]}-{tasks[j]}", gram[:, i, j] / (lengths[:, i] * lengths[:, j]))
            conflicts = (np.triu(gram, 1) < 0).sum((1, 2)).astype(np.float64)
            add("conflicts", conflicts)
            add("conflict_rate", conflicts / max(first.pairs, 1))
            add("nonfinite", (~np.isfinite(gram).all((1, 2))).astype(np.float64))
            if w is not None:
                of = grams if combined is None else combined.reshape(len(steps), -1, T, T)
                square = (w * np.matmul(of, w[..., None])[..., 0]).sum((1, 2))
                add("norm", np.sqrt(np.maximum(square, 0.0)))
        add("absent", np.full(len(steps), float(first.absent)))
        if gram is not None and status is not None:
            said = status.reshape(len(steps), -1, 4)
            add("converged", (said[:, :, 0] == 1).all(1).astype(np.float64))
            known = np.where((said[:, :, 1] < 0).any(1), UNKNOWN, 0.0)
            add("stationary", np.where((said[:, :, 1] == 1).any(1), 1.0, known))
    return names, columns


def _stacked(numbers: Sequence[object]) -> Numbers | None:
    """K, w, the status or the combined Gram matrix of all steps; None where there is none."""
    found = [n for n in numbers if isinstance(n, np.ndarray)]
    return np.stack(found) if found else None
