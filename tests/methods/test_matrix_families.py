"""What holds in theory for a family of matrices holds for all of it: every rank, scales from 1e-10 to 1e15, stationary or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from methods.gradients import FEWEST, assert_equal_vectors, magnitude
from oracles.families import (
    SCALES,
    all_ranks,
    improvable,
    ranked,
    stationary_sizes,
    strongly_stationary,
    weakly_stationary,
    with_zero_rows,
)
from torch import Tensor

import gradsurgery as gs

METHODS = sorted(gs.methods())
TOLERANCE = 1e-9


def tasks(name: str, fewest: int = 1) -> tuple[int, int]:
    return max(FEWEST.get(name, 1), fewest), 11


def given(name: str) -> dict[str, object]:
    """Options, and what else a method needs: random draws repeat themselves, and losses do not set tasks apart."""
    return {"seed": 1} if "seed" in gs.methods()[name].options else {}


def aggregate(name: str, G: Tensor) -> Tensor:
    losses = torch.ones(len(G), dtype=torch.float64) if "losses" in gs.methods()[name].needs else None
    out = gs.aggregate(G, name, losses=losses, **given(name))
    assert isinstance(out, Tensor)
    return out


def scale_of(name: str, G: Tensor) -> float:
    """Σ |w_t| ‖g_t‖, by which rounding is measured; for methods without weights of K, as if all were ones."""
    if gs.methods()[name].family in ("gram", "scalarization"):
        return magnitude(gs.weights(gs.gram(G), name, **given(name)), G)
    return float(G.norm(dim=1).sum())


def same(name: str, G: Tensor, out: Tensor, expected: Tensor) -> None:
    """Equal to rounding. Where a method of degree one leaves next to nothing, rounding is that of the gradients themselves."""
    rows = float(G.norm(dim=1).sum()) if gs.methods()[name].degree == 1 else 0.0
    assert_equal_vectors(out, expected, scale_of(name, G) + rows + float(expected.norm()), TOLERANCE)


def declaring(name: str) -> list[str]:
    return [method for method in METHODS if name in gs.methods()[method].properties]


# Structure.


@pytest.mark.parametrize("name", METHODS)
def test_every_rank_gives_a_finite_gradient(name: str) -> None:
    for G in all_ranks(tasks(name)):
        out = aggregate(name, G)
        assert out.shape == G.shape[1:]
        assert out.dtype == G.dtype
        assert bool(out.isfinite().all()), f"{list(G.shape)} of rank {int(torch.linalg.matrix_rank(G))}: {out}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_gives_a_finite_gradient(name: str, scale: float) -> None:
    for G in all_ranks((3, 5)):
        assert bool(aggregate(name, scale * G).isfinite().all())
    for T in range(tasks(name, 2)[0], 8):
        for zeros in range(T + 1):
            assert bool(aggregate(name, scale * with_zero_rows(T, 5, zeros)).isfinite().all())


# Properties: of those who declare them, over all families. Of the others the table says why.

ORDER = "projects in an order"
FIRST = "of tied tasks the first counts"
LENGTHS = "the lengths decide which tasks bind"
NORMALISED = "the lengths are divided out, or equalised"
DRAWN = "blind to K"
REDUCED = "the inner method's"
ONE_SIDED = "weights follow norms and losses, not angles"
FIXED_STEPS = "a few steps towards the solution, from where the last call ended"
COORDINATES = "coordinates are decided one by one, not by angles"

WITHOUT: dict[str, dict[str, str]] = {
    "non_conflicting": {
        **dict.fromkeys(("sum", "mean", "constant", "random"), DRAWN),
        **dict.fromkeys(("pcgrad", "gradvac"), "a later projection may bring an earlier conflict back, from three tasks"),
        "krum": "follows some tasks and leaves the others out",
        "cagrad": "only from c = 1: below, it stays near the mean",
        "alignedmtl": "balances the spectrum, even of two tasks",
        "imtlg": "may ascend for all from three tasks",
        "config": "of linearly dependent gradients the cosines are only near to equal",
        "pcd": "where its constraints contradict each other it follows the first task",
        "crmogm": REDUCED,
        **dict.fromkeys(("moco", "modo", "sdmgrad"), FIXED_STEPS),
        **dict.fromkeys(("dbmtl", "excessmtl"), ONE_SIDED),
        **dict.fromkeys(("graddrop", "median", "trimmed_mean"), COORDINATES),
    },
    "permutation_equivariant": {
        **dict.fromkeys(("pcgrad", "gradvac"), ORDER),
        "krum": FIRST,
        "pcd": "one task is primary",
        **dict.fromkeys(("random", "constant"), "weights are by position"),
    },
    "linear_under_scaling": {
        **dict.fromkeys(("mgda", "dualproj", "cagrad", "pcd"), LENGTHS),
        "krum": "distances depend on lengths",
        **dict.fromkeys(("fairgrad", "nashmtl", "imtlg", "alignedmtl", "moco", "dbmtl", "excessmtl"), NORMALISED),
        "crmogm": REDUCED,
        **dict.fromkeys(("modo", "sdmgrad"), FIXED_STEPS),
        **dict.fromkeys(("graddrop", "median", "trimmed_mean"), "the lengths decide which values count"),
    },
}


def test_of_every_property_it_is_said_who_has_it() -> None:
    for name, reasons in WITHOUT.items():
        silent = set(METHODS) - set(declaring(name)) - set(reasons)
        assert not silent, f"{name}: neither declared nor, in the table above, explained for {sorted(silent)}"
        assert not set(declaring(name)) & set(reasons)


def families(name: str) -> Iterator[Tensor]:
    for G in all_ranks(tasks(name)):
        if len(G) % 2 or G.shape[1] % 3 == 1:  # more than half of them
            yield G
    for T, N, rank in stationary_sizes(tasks(name, 3)):
        if (T + N + rank) % 3 == 0:
            yield strongly_stationary(T, N, rank)
            yield weakly_stationary(T, N, rank) if rank < T - 2 else improvable(T, N, rank)
    for T in range(tasks(name, 2)[0], 8):
        yield from (with_zero_rows(T, 5, zeros) for zeros in range(1, T + 1))
    for scale in SCALES:
        yield from (scale * ranked(T, N, min(T, N)) for T, N in ((3, 2), (4, 6), (7, 5)))


@pytest.mark.parametrize("name", declaring("non_conflicting"))
def test_no_task_gets_worse(name: str) -> None:
    for G in families(name):
        out = aggregate(name, G)
        assert bool((G @ out >= -TOLERANCE * scale_of(name, G) * G.norm(dim=1)).all()), G


@pytest.mark.parametrize("name", declaring("permutation_equivariant"))
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for G in families(name):
        order = torch.randperm(len(G), generator=generator)
        same(name, G, aggregate(name, G[order]), aggregate(name, G))


@pytest.mark.parametrize("name", declaring("linear_under_scaling"))
def test_linear_under_scaling(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for G in families(name):
        c1, c2 = 0.1 + torch.rand(2, len(G), generator=generator, dtype=torch.float64)
        a, b = (0.1 + torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        both, one, two = ((c[:, None] * G) for c in (a * c1 + b * c2, c1, c2))
        scale = scale_of(name, both) + a * scale_of(name, one) + b * scale_of(name, two)
        assert_equal_vectors(aggregate(name, both), a * aggregate(name, one) + b * aggregate(name, two), scale, TOLERANCE)


# Stationarity: where no change of the parameters helps a task but at another's cost, w > 0 has Gᵀw = 0.

# A method whose weights are all positive cannot come to rest elsewhere; these have others.
RESTS_ELSEWHERE = {
    "mgda": "wherever a combination of some gradients is zero",
    "krum": "where the tasks that it keeps have none",
    "pcd": "where the primary task has none",
    "crmogm": REDUCED,
    **dict.fromkeys(("config", "imtlg", "alignedmtl"), "where negative weights cancel"),
    **dict.fromkeys(("modo", "sdmgrad"), FIXED_STEPS),
    **dict.fromkeys(("graddrop", "median", "trimmed_mean", "sign_agreement"), COORDINATES),
}

# The others stop only by chance where no change helps all: their weights are not made for that.
VANISHING = ("mgda", "upgrad", "dualproj")
WAY_ON = 1e-7  # of Σ |w_t| ‖g_t‖: where some gradients cancel to zero, FairGrad's weights of them are 2^18 times the others'


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RESTS_ELSEWHERE])
def test_there_is_a_way_on_unless_strongly_stationary(name: str) -> None:
    for T, N, rank in stationary_sizes(tasks(name, 3)):
        for G in [improvable(T, N, rank), *([weakly_stationary(T, N, rank)] if 0 < rank < min(T - 2, N - 1) else [])]:
            assert float(aggregate(name, G).norm()) > WAY_ON * scale_of(name, G), G


@pytest.mark.parametrize("name", VANISHING)
def test_at_rest_where_strongly_stationary(name: str) -> None:
    for T, N, rank in stationary_sizes(tasks(name, 2)):
        G = strongly_stationary(T, N, rank)
        assert float(aggregate(name, G).norm()) <= TOLERANCE * scale_of(name, G), G
