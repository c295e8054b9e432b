"""Calls of ``coordinatewise_``: every rule with options that fit a sample, and what the oracle says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from ops.samples import Sample
from oracles import coordinatewise as oracle
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """A rule with its options; the key is that of GradDrop."""

    rule: str
    options: list[float] = field(default_factory=list)
    key: tuple[int, int] = (3, 2**33 + 5)

    def __str__(self) -> str:
        return f"{self.rule}{self.options[:2]}"

    def run(self, ops: Any, given: Sample, out: list[Tensor], accumulate: bool = False) -> None:
        """Writes into ``out``; GradDrop's step must be advanced by one."""
        key = torch.tensor(self.key, device=out[0].device) if self.rule == "graddrop" else None
        ops.coordinatewise_(out, given.grads, given.tasks, given.stacked, self.rule, self.options, None, key, accumulate)
        if key is not None:
            assert key.tolist() == [self.key[0], self.key[1] + 1]

    def exact(self, given: Sample) -> list[Tensor]:
        """The oracle, position by position, flat. [P]"""
        results, first = [], 0
        for p in range(given.pieces):
            rows = given.rows(p)
            present = [t for t, row in enumerate(rows) if row is not None]
            here = [row.cpu() for row in rows if row is not None]
            if not here:
                first += 3  # what Sample.empty makes of it
                results.append(torch.zeros(3, dtype=torch.float64))
                continue
            results.append(
                oracle.by_coordinate(here, lambda x, k, first=first, present=present: self._value(x, first + k, present))
            )
            first += here[0].numel()
        return results

    def _value(self, x: list[float], coordinate: int, present: list[int]) -> float:
        if self.rule == "graddrop":
            U = oracle.uniform(self.key[0] % 2**64, self.key[1], coordinate)
            return oracle.graddrop(x, U, [self.options[t] for t in present] if self.options else None)
        if self.rule == "sign_agreement":
            return oracle.sign_agreement(x, self.options[0], self.options[1] != 0)
        if self.rule == "trimmed_mean":
            return oracle.trimmed_mean(x, int(self.options[0]))
        return oracle.median(x)


def calls(given: Sample) -> list[Call]:
    """Every rule, with leaks of the tasks' own, thresholds between and at the ends, and the largest trim that fits."""
    T = given.tasks
    fewest = min((n for p in range(given.pieces) if (n := sum(row is not None for row in given.rows(p)))), default=T)
    return [
        Call("graddrop"),
        Call("graddrop", [t / T for t in range(T)], (-7, 0)),
        Call("sign_agreement", [1.0, 1.0]),
        Call("sign_agreement", [0.6, 0.0]),
        Call("trimmed_mean", [(fewest - 1) // 2]),
        Call("trimmed_mean", [min(1, (fewest - 1) // 2)]),
        Call("median"),
    ]


def magnitude(rows: list[Tensor | None]) -> Tensor:
    """sum_t |g_t|, coordinate by coordinate: what rounding errors are measured by."""
    sizes: Tensor = sum(row.double().abs().reshape(-1) for row in rows if row is not None)  # type: ignore[assignment]
    return sizes


ALL_BITS_ZERO = (1343428, 3)  # a seed of whose step 0 the word of this coordinate is 0


def check_lowest_draw(ops: Any, device: torch.device | str = "cpu") -> None:
    """Even where all bits drawn are zero, what all gradients agree on stays: P = 0 < U."""
    seed, coordinate = ALL_BITS_ZERO
    assert oracle.uniform(seed, 0, coordinate) == 2.0**-33
    G = -torch.arange(1.0, 9.0, device=device)[None]
    out, key = [torch.empty(8, device=device)], torch.tensor([seed, 0], device=device)
    ops.coordinatewise_(out, [G], 1, True, "graddrop", [], None, key)
    assert torch.equal(out[0], G[0])
