"""Run folders with known faults, written without training."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np


def write_log(folder: Path, columns: Mapping[str, Any], *, first: int = 0, steps: Sequence[int] | None = None) -> Path:
    """log.csv of columns of one length; NaN becomes an empty cell, and a float is written as it reads back."""
    folder.mkdir(parents=True, exist_ok=True)
    length = max(map(len, columns.values()), default=0)
    numbers = list(range(first, first + length)) if steps is None else list(steps)
    with open(folder / "log.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *columns])
        for row, step in enumerate(numbers):
            writer.writerow([step, *(_cell(values[row]) if row < len(values) else "" for values in columns.values())])
    return folder


def write_layers(folder: Path, cosines: Mapping[str, Mapping[str, Sequence[float]]], window: int, *, first: int = 0) -> Path:
    """layers.csv from {layer: {"a-b": cosine of every step}}: means over windows, and shares of negative ones."""
    pairs = list(next(iter(cosines.values())))
    with open(folder / "layers.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["step", "steps", "layer", *(f"cosine/{pair}" for pair in pairs), *(f"conflict_rate/{pair}" for pair in pairs)]
        )
        count = len(next(iter(next(iter(cosines.values())).values())))
        for start in range(0, count, window):
            end = min(start + window, count)
            for layer, by_pair in cosines.items():
                parts = [np.asarray(by_pair[pair][start:end]) for pair in pairs]
                means, rates = [repr(float(part.mean())) for part in parts], [repr(float((part < 0).mean())) for part in parts]
                writer.writerow([first + end - 1, end - start, layer, *means, *rates])
    return folder


def run_columns(
    steps: int = 300,
    *,
    tasks: Sequence[str] = ("seg", "depth", "pose"),
    means: Mapping[str, Any] | None = None,
    noise: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """A run in which all is well: losses fall, lengths are alike, cosines scatter around ``means`` (0.2 where none is given)."""
    rng = np.random.default_rng(seed)
    time = np.arange(steps)
    columns: dict[str, Any] = {}
    for place, task in enumerate(tasks):
        columns[f"loss/{task}"] = (1 + place) * (0.3 + np.exp(-time / 80)) * (1 + 0.05 * rng.standard_normal(steps))
    for task in tasks:
        columns[f"weight/{task}"] = np.ones(steps)
    for task in tasks:
        columns[f"norm/{task}"] = np.exp(0.2 * rng.standard_normal(steps))
    pairs = [f"{one}-{other}" for one, other in combinations(tasks, 2)]
    for pair in pairs:
        columns[f"cosine/{pair}"] = ((means or {}).get(pair, 0.2) + noise * rng.standard_normal(steps)).clip(-1, 1)
    negative = np.array([columns[f"cosine/{pair}"] < 0 for pair in pairs]).reshape(len(pairs), steps)
    columns["conflicts"] = negative.sum(0).astype(float)
    columns["nonfinite"] = np.zeros(steps)
    return columns


def conflict_run(folder: Path) -> Path:
    """seg and depth conflict from step 100 to 249 of 300, by what happens at trunk.2 alone."""
    rng = np.random.default_rng(1)
    steps = np.arange(300)
    torn = (steps >= 100) & (steps < 250)
    columns = run_columns(means={"seg-depth": np.where(torn, -0.5, 0.2)})
    columns["weight/seg"] = columns["weight/depth"] = np.where(
        columns["cosine/seg-depth"] < 0, 1 - columns["cosine/seg-depth"], 1.0
    )
    write_log(folder, columns)
    layers = ("stem", "trunk.0", "trunk.1", "trunk.2", "trunk.3")
    cosines = {
        layer: {
            pair: (np.where(torn & (layer == "trunk.2") & (pair == "seg-depth"), -0.7, 0.25) + 0.1 * rng.standard_normal(300)).clip(
                -1, 1
            )
            for pair in ("seg-depth", "seg-pose", "depth-pose")
        }
        for layer in layers
    }
    return write_layers(folder, cosines, 10)


def collapse_run(folder: Path) -> Path:
    """depth's head dies in step 120: no gradient any more, and a loss that stays where it is."""
    columns = run_columns()
    dead = np.arange(300) >= 120
    columns["norm/depth"] = np.where(dead, 1e-4, columns["norm/depth"])
    columns["loss/depth"] = np.where(dead, 2.4, columns["loss/depth"])
    for pair in ("seg-depth", "depth-pose"):
        columns[f"cosine/{pair}"] = np.where(dead, 0.05, columns[f"cosine/{pair}"])
    return write_log(folder, columns)


def healthy_run(folder: Path) -> Path:
    """Gradients that agree a little."""
    rng = np.random.default_rng(2)
    write_log(folder, run_columns())
    cosines = {
        layer: {pair: 0.15 + 0.2 * rng.standard_normal(300) for pair in ("seg-depth", "seg-pose", "depth-pose")}
        for layer in ("stem", "trunk")
    }
    return write_layers(folder, cosines, 10)


def _cell(value: float) -> str:
    return "" if isinstance(value, float) and math.isnan(value) and not isinstance(value, Given) else repr(float(value))


class Given(float):
    """A NaN that was measured: written as nan, not as an empty cell."""
