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
            found.append(
                (min(layer.cosine * layer.share for layer in conflicts), _sentence(run, run.layers, one, other, conflicts))
            )
    found.sort(key=lambda entry: entry[0])
    findings = [finding for _, finding in found[:MOST]]
    if len(found) > MOST:
        findings.append(Finding("layers", "note", f"{len(found) - MOST} more pairs conflict at some layer, less than these."))
    if not findings and run.pairs:
        count = len(run.layers.names)
        sentence = f"At none of the {count} recorded layer{'s' if count > 1 else ''} does a pair of tasks conflict for long."
        findings.append(Finding("layers", "ok", sentence, {"layers": count, "columns": "layers.csv: cosine/…, conflict_rate/…"}))
    return findings


def _sentence(run: Run, layers: Layers, one: str, other: str, conflicts: list[LayerConflict]) -> Finding:
    """Layers by strength and duration; those whose mean over the run is positive come after the others."""
    by_name: dict[str, list[LayerConflict]] = {}
    for conflict in conflicts:
        by_name.setdefault(conflict.layer, []).append(conflict)
    cosines = layers.column(f"cosine/{layers.pair(one, other)}")
    known = np.isfinite(cosines)
    measured = [name for name, row in zip(layers.names, known, strict=True) if row.any()]
    means = dict(zip(layers.names, _means(cosines, layers.counts), strict=True))
    worst = sorted(by_name, key=lambda name: sum(part.cosine * part.share for part in by_name[name]))
    passing = [name for name in worst if means[name] > 0]
    lasting = [name for name in worst if name not in passing]
    free = [name for name in measured if name not in by_name]
    described = {name: f"{words.layer(name)} ({_when(by_name[name])})" for name in worst}
    everywhere = len(lasting) == len(measured) > 1
    if everywhere:
        both = f"both layers: {words.listed([described[name] for name in lasting])}"
        sentence = f"{one} and {other} conflict at "
        sentence += both if len(lasting) == 2 else f"all {len(lasting)} layers, most at {_some(lasting, described, beyond=False)}"
    elif lasting:
        sentence = f"{one} and {other} conflict at {_some(lasting, described)}"
    else:
        sentence = f"{one} and {other} conflict for a while, though not on average over the run, at {_some(passing, described)}"
    if lasting and passing:
        sentence += f"; for a while, though not on average over the run, at {_some(passing, described)}"
    if free:
        few = len(free) <= len(by_name) or len(free) <= 4
        sentence += f"; not at {words.listed(map(words.layer, free), 4)}" if few else "; not at any other layer"
    acting = [name for name in [*lasting, *passing] if any(part.worth_acting for part in by_name[name])]
    evidence = {
        words.layer(name): "; ".join(f"{words.span(part.first, part.last)}: cosine {words.signed(part.cosine, 3)}, "
                                     f"{words.percent(part.rate)} of {part.steps} steps negative" for part in by_name[name])
        + f"; over the run {words.signed(means[name], 3)}"
        for name in [*lasting, *passing][:40]
    }  # fmt: skip
    columns = f"layers.csv: cosine/{layers.pair(one, other)}"
    advice = ""
    if acting and len(acting) < len(measured) and run.setting("group_by") != "layer":
        where = words.listed(map(words.layer, acting), 3)
        advice = f'Surgery layer by layer (group_by="layer") decides at {where} by what is measured there alone.'
    return Finding("layers", "warning" if acting else "note", f"{sentence}.", {**evidence, "columns": columns}, advice)


def _when(parts: list[LayerConflict]) -> str:
    """Steps and the cosine over them."""
    steps = sum(part.steps for part in parts)
    cosine = sum(part.cosine * part.steps for part in parts) / steps
    when = "throughout" if sum(part.share for part in parts) >= 1 else words.listed([words.span(p.first, p.last) for p in parts], 3)
    return f"{when}, cosine {words.signed(cosine)}"


def _some(names: list[str], described: dict[str, str], *, beyond: bool = True) -> str:
    """The first three; how many more there are, where that is not said already."""
    shown = [described[name] for name in names[:3]]
    if beyond and len(names) > 3:
        shown.append(f"{len(names) - 3} more layers" if len(names) > 4 else "one more layer")
    return words.listed(shown)


def _means(cosines: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float]:
    """Over the run, by layer; NaN where there is none."""
    weights = np.where(np.isfinite(cosines), counts, 0.0)
    totals = weights.sum(1)
    means: list[float] = np.where(totals > 0, (np.nan_to_num(cosines) * weights).sum(1) / np.maximum(totals, 1), np.nan).tolist()
    return means
