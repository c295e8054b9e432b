"""Random gradients for Hypothesis: small integers over powers of two, so that conflicts, ties and zeros come up by themselves."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

import gradsurgery as gs

# The methods whose weights come from the Gram matrix of one batch alone.
FROM_GRAM = sorted(name for name, spec in gs.methods().items() if spec.family in ("gram", "scalarization"))

# Those that treat every coordinate by itself, and have no weights.
COORDINATEWISE = sorted(name for name, spec in gs.methods().items() if spec.family == "coordinatewise")

# Options under which roundings stay roundings: SDMGrad's usual steps are so long that its iteration amplifies them without bound.
CALM = {"sdmgrad": {"lr": 1.0, "n_iter": 3}}

# The fewest tasks that a method takes with its default options, where that is more than one.
FEWEST = {"krum": 3, "trimmed_mean": 3}


@st.composite
def matrices(draw: st.DrawFn, tasks: tuple[int, int] = (1, 6), conflicts: bool = True, scaled: bool = True) -> Tensor:
    """G [T, N] in float64; rows scaled by up to 1e4 either way, some of them zero. Without conflicts: all entries are >= 0."""
    T = draw(st.integers(*tasks))
    N = draw(st.integers(1, 7))
    low = -8 if conflicts else 0
    numbers = draw(st.lists(st.lists(st.integers(low, 8), min_size=N, max_size=N), min_size=T, max_size=T))
    G = torch.tensor(numbers, dtype=torch.float64) / 4
    if scaled:
        exponents = draw(st.lists(st.integers(-13, 13), min_size=T, max_size=T))
        G = G * 2.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]
    return G


@st.composite
def positive(draw: st.DrawFn, count: int) -> Tensor:
    """Positive factors in float64. [count]"""
    return torch.tensor(draw(st.lists(st.floats(0.125, 8.0), min_size=count, max_size=count)), dtype=torch.float64)


def conflicting(G: Tensor) -> bool:
    """Whether some K_ij is negative."""
    return bool(((G @ G.T) < 0).any())


def magnitude(w: Tensor, G: Tensor) -> float:
    """sum_t |w_t| |g_t|: what rounding errors of the combination are measured by."""
    return float((w.abs() * G.norm(dim=1)).sum())


def assert_equal_vectors(actual: Tensor, expected: Tensor, scale: float, tolerance: float = 1e-9) -> None:
    """|actual - expected| <= tolerance * scale, as vectors."""
    difference = float((actual - expected).norm())
    assert difference <= tolerance * scale, f"apart by {difference:.3e} at scale {scale:.3e}"
