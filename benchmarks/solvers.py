"""The methods' solvers alone, K -> w: checked, then timed against TorchJD's on the same K, and against the reading of G."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

import torch
from cases import Case, gradients
from certificates import CERTIFICATES
from oracle import pcgrad
from providers import PROVIDERS
from providers.provider import seed_all
from results import Row
from rivals import RIVALS, Rival
from timing import Effort, Times, interleave
from torch import Tensor

import gradsurgery as gs

TASKS = (2, 3, 8, 16, 32)
MATRICES = 4  # a call solves so many different problems
READ_NUMEL = 100_000
READ_TASKS = 8  # up to here a solver is set against the reading of G
RESIDUAL = 1e-9
SAME = 0.25  # an answer to another question, or in other units, is further off for every matrix


def problems(tasks: int, device: torch.device) -> list[Tensor]:
    """G [T, 4T] in float64: conflicts in about half of the pairs, full rank."""
    found = []
    for seed in range(MATRICES):
        generator = torch.Generator().manual_seed(1000 * tasks + seed)
        mix = torch.eye(tasks, dtype=torch.float64)
        mix += 0.6 * torch.randn(tasks, tasks, generator=generator, dtype=torch.float64) / tasks**0.5
        found.append((mix @ torch.randn(tasks, 4 * tasks, generator=generator, dtype=torch.float64)).to(device))
    return found


def distance(out: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected|."""
    return float((out - expected).norm() / expected.norm())


def in_order(method: str, G: Tensor, solve: Callable[[], Tensor], orders: Callable[[int], list[list[int]]]) -> float:
    """The distance of PCGrad, or of GradVac without memory, from the projections of full vectors in the orders that were drawn."""
    seed_all(0)
    drawn = orders(len(G))
    seed_all(0)
    return distance(solve() @ G, pcgrad(G, drawn))


def check_ours(method: str, solve: Callable[[Tensor], Tensor], matrices: list[Tensor], rival: Rival) -> float:
    """The largest residual of this library's weights.

    Raises:
        AssertionError: it is more than RESIDUAL.
    """
    found = []
    for G in matrices:
        K = gs.gram(G)
        if rival.orders is None:
            found.append(CERTIFICATES[method](K, solve(K), **rival.options))
        else:
            found.append(in_order(method, G, partial(solve, K), PROVIDERS["gradsurgery"].orders))
    worst = max(found)
    if not all(residual <= RESIDUAL for residual in found):
        raise AssertionError(
            f"gradsurgery: {method} leaves a residual of {worst:.1e} at T={len(matrices[0])}, where {RESIDUAL:.0e} is allowed."
        )
    return worst


def check_rival(
    method: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], matrices: list[Tensor], rival: Rival
) -> float:
    """The largest distance of the rival's gradient: from ours, or from the oracle where orders are random.

    Its solver may be inaccurate, which is what the number tells.

    Raises:
        AssertionError: it is far from all of them, and thus solves another problem.
    """
    found = []
    for G in matrices:
        K = gs.gram(G)
        if rival.orders is not None:
            found.append(in_order(method, G, partial(theirs, K), rival.orders))
        else:
            answer = theirs(K) @ G if rival.takes == "gram" else theirs(G)
            found.append(distance(answer, ours(K) @ G))
    if not min(found) <= SAME:
        raise AssertionError(
            f"torchjd: {method} is off by {min(found):.1e} at T={len(matrices[0])} at best; beyond {SAME} it is another problem."
        )
    return max(found)


def over_all(solve: Callable[[Tensor], Tensor], given: list[Tensor]) -> Callable[[], None]:
    """A call that solves every problem once."""

    def call() -> None:
        for matrix in given:
            solve(matrix)

    return call


def solver_rows(
    tasks: Iterable[int], effort: Effort, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """A row for each method that both libraries have, number of tasks and library; with ``read_p50``, gram's time at READ_NUMEL.

    The times of a method at one T come from the same rounds. ``error`` is ours by certificate, the rival's by distance.

    Raises:
        AssertionError: a solver's answer is wrong.
    """
    rows: list[Row] = []
    for T in tasks:
        matrices = problems(T, device)
        grams = [gs.gram(G) for G in matrices]
        grads = gradients(Case(T, READ_NUMEL), device)
        for method, rival in RIVALS.items():
            ours, theirs = partial(gs.weights, method=method, **rival.options), rival.build(T)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cvxpy's, about how the problem is stated and how accurately it was solved
                errors = {
                    "gradsurgery": check_ours(method, ours, matrices, rival),
                    "torchjd": check_rival(method, ours, theirs, matrices, rival),
                }
                calls: dict[str, Callable[[], object]] = {
                    "gradsurgery": over_all(ours, grams),
                    "torchjd": over_all(theirs, grams if rival.takes == "gram" else matrices),
                }
                if T <= READ_TASKS:
                    calls["gram"] = partial(gs.gram, grads)
                times = interleave(calls, effort, device)
            for provider, error in errors.items():
                row = {"kind": "solver", "method": method, "tasks": T, "provider": provider, **asdict(_each(times[provider]))}
                rows.append({**row, "error": error, **({"read_p50": times["gram"].p50} if "gram" in times else {})})
            say(f"T={T} {method}: " + ", ".join(f"{row['provider']} {row['p50'] * 1e6:.1f} us" for row in rows[-2:]))
    return rows


def _each(times: Times) -> Times:
    """Of one of the problems that a call solves."""
    return replace(times, p20=times.p20 / MATRICES, p50=times.p50 / MATRICES, p80=times.p80 / MATRICES)
