"""MoCo, DB-MTL and ExcessMTL as their papers and LibMTL write them, on full vectors in float64, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class MoCoOracle:
    """y, λ and k between calls; ``present`` tells which rows take part."""

    beta: float = 0.5
    beta_sigma: float = 0.5
    gamma: float = 0.1
    gamma_sigma: float = 0.5
    rho: float = 0.0
    y: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    k: int = 0

    def __call__(self, G: Tensor, losses: Sequence[float], present: Sequence[bool] | None = None) -> Tensor:
        G = G.double()
        self.k += 1
        here = [t for t in range(len(G)) if present is None or present[t]]
        for t in range(len(G)):
            self.y.setdefault(t, torch.zeros_like(G[t]))
            self.weights.setdefault(t, 1 / len(G))
        for t in here:
            norm = float(G[t].norm())
            target = G[t] * losses[t] / norm if norm > 0 else torch.zeros_like(G[t])
            self.y[t] = self.y[t] - self.beta / self.k**self.beta_sigma * (self.y[t] - target)
        mixed = sum(self.weights[t] * self.y[t] for t in here)
        moved = {}
        for t in here:
            descent = float(self.y[t] @ mixed) + self.rho * self.weights[t]
            moved[t] = math.exp(self.weights[t] - self.gamma / self.k**self.gamma_sigma * descent)
        for t in here:
            self.weights[t] = moved[t] / sum(moved.values())
        result = sum(self.weights[t] * self.y[t] for t in here)
        assert isinstance(result, Tensor)
        return result


@dataclass
class DBMTLOracle:
    """y and k between calls."""

    beta: float = 0.9
    beta_sigma: float = 0.0
    y: dict[int, Tensor] = field(default_factory=dict)
    k: int = 0

    def __call__(self, G: Tensor, losses: Sequence[float], present: Sequence[bool] | None = None) -> Tensor:
        G = G.double()
        self.k += 1
        here = [t for t in range(len(G)) if present is None or present[t]]
        keep = self.beta / self.k**self.beta_sigma
        for t in here:
            target = G[t] / losses[t] if bool(G[t].any()) else G[t]
            self.y[t] = target + keep * (self.y.get(t, torch.zeros_like(target)) - target)
        longest = max(float(self.y[t].norm()) for t in here)
        result = torch.zeros_like(G[0])
        for t in here:
            if bool(self.y[t].any()):
                result = result + longest * self.y[t] / self.y[t].norm()
        return result


@dataclass
class ExcessMTLOracle:
    """S, the first excess risks and w between calls."""

    step: float = 0.01
    init: str = "ones"
    squares: dict[int, Tensor] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)

    def __call__(self, G: Tensor, losses: object = None, present: Sequence[bool] | None = None) -> Tensor:
        G = G.double()
        here = [t for t in range(len(G)) if present is None or present[t]]
        relative = {}
        for t in range(len(G)):
            self.weights.setdefault(t, 1.0 if self.init == "ones" else 1 / len(G))
        for t in here:
            self.squares[t] = self.squares.get(t, torch.zeros_like(G[t])) + G[t] ** 2
            seen = self.squares[t] > 0
            risk = float((G[t][seen] ** 2 / self.squares[t][seen].sqrt()).sum())
            if t in self.first:
                relative[t] = risk / self.first[t]
            else:
                relative[t] = 1.0 if self.init == "ones" else risk
                if risk > 0:
                    self.first[t] = risk
        top = max(relative.values())
        raised = {t: self.weights[t] * math.exp(self.step * (relative[t] - top)) for t in here}
        total = (len(here) if self.init == "ones" else 1.0) / sum(raised.values())
        for t in here:
            self.weights[t] = total * raised[t]
        result = sum(self.weights[t] * G[t] for t in here)
        assert isinstance(result, Tensor)
        return result
