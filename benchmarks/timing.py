"""Interleaved timing: in every round each contender runs once, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Sample = Callable[[Call, int], float]
"""Runs a call so many times, and tells the seconds of one of them."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        sample_s: a sample repeats its call until it lasts at least this long.
        budget_s: for one contender; rounds go on until all of it is spent.
        rounds: but at least, and at most, this many.
    """

    sample_s: float
    budget_s: float
    rounds: tuple[int, int]


@dataclass(frozen=True)
class Times:
    """Seconds a call at three percentiles, over ``samples`` rounds."""

    p20: float
    p50: float
    p80: float
    samples: int


def host_clock(device: torch.device) -> Sample:
    """Samples from the first call on the host to the end of the last on the device."""
    finish: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample(call: Call, repeats: int) -> float:
        finish()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        finish()
        return (time.perf_counter() - start) / repeats

    return sample


def interleave(calls: Mapping[str, Call], effort: Effort, device: torch.device, sample: Sample | None = None) -> dict[str, Times]:
    """Times all contenders side by side, by the host's clock unless told otherwise; each leads a round as often as the others."""
    sample = sample or host_clock(device)
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        sample(call, 1)  # warm: pools, caches, pages
        count = 1
        while sample(call, count) * count < effort.sample_s:
            count *= 2
        repeats[name] = count

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name in in_rounds(list(calls), effort):
        taken[name].append(sample(calls[name], repeats[name]))
    return {name: percentiles(values) for name, values in taken.items()}


def in_rounds(names: list[str], effort: Effort) -> Iterator[str]:
    """Whose turn it is, for as many rounds as are to be; each leads a round as often as the others."""
    stop = time.perf_counter() + effort.budget_s * len(names)
    least, most = effort.rounds
    for r in range(most):
        if r >= least and time.perf_counter() > stop:
            return
        lead = r % len(names)
        yield from names[lead:] + names[:lead]


def percentiles(values: list[float]) -> Times:
    """Of samples, in seconds."""
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    p20, p50, p80 = quantiles.tolist()
    return Times(p20, p50, p80, len(values))
