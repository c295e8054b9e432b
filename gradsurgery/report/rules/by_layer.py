"""In which layers a pair of tasks conflicts, and in which steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsurgery.report import words
from gradsurgery.report.facts import CONFLICT, LASTING, MODERATE
from gradsurgery.report.finding import Finding
from gradsurgery.report.layers import Layers
from gradsurgery.report.run import Run
from gradsurgery.report.series import inflation

COIN = 2.0  # a coin's share of heads in n throws is within 1/2 ± 2/√n: four standard deviations, as there are many layers;
# and further apart where steps resemble their neighbours, of which the cosine over all layers tells, step by step
MOST = 6  # sentences on pairs


@dataclass(frozen=True)
class LayerConflict:
    """Windows in a row in which a pair conflicts at a layer.

    Attributes:
        steps: recorded steps in them.
        cosine: mean over them.
        rate: share of them with a negative product.
        share: of the recorded steps of the layer.
    """

    layer: str
    first: int
    last: int
    steps: int
    cosine: float
    rate: float
    share: float

    @property
    def worth_acting(self) -> bool:
        """Long enough, and deep enough."""
        return self.share >= LASTING and self.cosine <= MODERATE


def layer_conflicts(run: Run, one: str, other: str) -> list[LayerConflict]:
    """In the order of the layers. A mean of CONFLICT counts where more steps are negative than a coin would make them."""
    layers = run.layers
    if layers is None:
        return []
    cosines, rates = _grids(layers, one, other)
    starts = _starts(run, layers)
    coin = COIN * inflation(run.series(run.pairs[one, other])[1])
    found = []
    for place, name in enumerate(layers.names):
        here = np.isfinite(cosines[place])
        total = layers.counts[here].sum()
        for first, end in _low(cosines[place][here]):
            windows = np.flatnonzero(here)[first:end]
            counts = layers.counts[windows]
            steps = counts.sum()
            cosine = float(np.average(cosines[place, windows], weights=counts)) if steps else np.nan
            rate = float(np.average(rates[place, windows], weights=counts)) if steps else np.nan
            if steps and cosine <= CONFLICT and rate >= 0.5 + coin / np.sqrt(steps):
                ends = int(layers.ends[windows[-1]])
                found.append(LayerConflict(name, int(starts[windows[0]]), ends, int(steps), cosine, rate, float(steps / total)))
    return found


def _grids(layers: Layers, one: str, other: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean cosines, and the shares of steps with a negative product; without those a window counts by its mean's sign. [L, W]"""
    pair = layers.pair(one, other)
    cosines = layers.column(f"cosine/{pair}")
    rates = layers.column(f"conflict_rate/{pair}")
    return cosines, np.where(np.isfinite(rates), rates, (cosines < 0).astype(float))


def _starts(run: Run, layers: Layers) -> NDArray[np.int64]:
    """The first recorded step of each window. [W]"""
    before = np.concatenate(([-1], layers.ends[:-1]))
    places = np.searchsorted(run.steps, before, side="right").clip(max=len(run.steps) - 1)
    starts: NDArray[np.int64] = np.minimum(run.steps[places], layers.ends)
    return starts


def _low(values: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Stretches [first, end) of windows in conflict; one window in between that is not does not part them."""
    low = values <= CONFLICT
    bridged = low.copy()
    bridged[1:-1] |= low[:-2] & low[2:]
    changes = np.flatnonzero(np.diff(np.concatenate(([0], bridged.astype(int), [0]))))
    yield from zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True)


def by_layer(run: Run) -> list[Finding]:
    """A sentence for each pair that conflicts at a layer."""
    if run.layers is None:
        return []
    found = []
    for one, other in run.pairs:
        if conflicts := layer_conflicts(run, one, other):
            found.append((min(layer.cosine * layer.share for layer in conflicts), _sentence(run.layers, one, other, conflicts)))
    found.sort(key=lambda entry: entry[0])
    findings = [finding for _, finding in found[:MOST]]
    if len(found) > MOST:
        findings.append(Finding("layers", "note", f"{len(found) - MOST} more pairs conflict at some layer, less than these."))
    if not findings and run.pairs:
        count = len(run.layers.names)
        sentence = f"At none of the {count} recorded layer{'s' if count > 1 else ''} does a pair of tasks conflict for long."
        findings.append(Finding("layers", "ok", sentence, {"layers": count, "columns": "layers.csv: cosine/…, conflict_rate/…"}))
    return findings


def _sentence(layers: Layers, one: str, other: str, conflicts: list[LayerConflict]) -> Finding:
    by_name: dict[str, list[LayerConflict]] = {}
    for conflict in conflicts:
        by_name.setdefault(conflict.layer, []).append(conflict)
    worst = sorted(by_name, key=lambda name: min(part.cosine * part.share for part in by_name[name]))
    cosines = layers.column(f"cosine/{layers.pair(one, other)}")
    free = [name for name, row in zip(layers.names, cosines, strict=True) if name not in by_name and np.isfinite(row).any()]
    described = [
        f"{name} ({words.listed([words.span(part.first, part.last) for part in by_name[name]], 2)}, "
        f"cosine {words.signed(min(part.cosine for part in by_name[name]))})"
        for name in worst[:3]
    ]
    if len(worst) > 3:
        described.append(f"{len(worst) - 3} more layers" if len(worst) > 4 else "one more layer")
    sentence = f"{one} and {other} conflict at {words.listed(described)}"
    if free:
        sentence += (
            f"; not at {words.listed(free, 4)}" if len(free) <= len(by_name) or len(free) <= 4 else "; not at any other layer"
        )
    acting = [name for name in worst if any(part.worth_acting for part in by_name[name])]
    evidence = {
        name: "; ".join(f"{words.span(part.first, part.last)}: cosine {words.signed(part.cosine, 3)}, "
                        f"{words.percent(part.rate)} of {part.steps} steps negative" for part in by_name[name])
        for name in worst[:40]
    }  # fmt: skip
    columns = f"layers.csv: cosine/{layers.pair(one, other)}"
    advice = (
        f'Surgery layer by layer (group_by="layer") decides at {words.listed(acting, 3)} by what is measured there alone.'
        if acting
        else ""
    )
    return Finding("layers", "warning" if acting else "note", f"{sentence}.", {**evidence, "columns": columns}, advice)
