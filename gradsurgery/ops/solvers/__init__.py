"""The solvers K -> w in plain PyTorch: the specification of ``csrc/weights/*.h``, file by file.

Unlike the compiled ones they run on the CPU whatever K's device, and so wait for it: they are exact, small and slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import random_order
from ..schema import LIBRARY
from .alignedmtl import alignedmtl
from .cagrad import cagrad
from .config import config
from .dual_cone import dualproj, upgrad
from .fairgrad import fairgrad
from .gradvac import gradvac
from .imtlg import imtlg
from .krum import krum
from .mgda import mgda
from .modo import modo
from .nashmtl import nashmtl
from .pcd import pcd
from .problem import Problem, Report, Solver
from .random_weights import random_weights
from .sdmgrad import sdmgrad

SOLVERS: dict[str, Solver] = {
    "alignedmtl": Solver(alignedmtl, options=2),
    "cagrad": Solver(cagrad, options=2),
    "config": Solver(config, options=1),
    "dualproj": Solver(dualproj, options=3),
    "fairgrad": Solver(fairgrad, options=1),
    "gradvac": Solver(gradvac, options=1, state_size=lambda T: T * T),
    "imtlg": Solver(imtlg),
    "krum": Solver(krum, options=2),
    "mgda": Solver(mgda, options=2),
    "modo": Solver(modo, options=2, state_size=lambda T: T),
    "nashmtl": Solver(nashmtl, options=1),
    "pcd": Solver(pcd, options=4, state_size=lambda T: 2 * T),
    "random": Solver(random_weights),
    "sdmgrad": Solver(sdmgrad, options=4, state_size=lambda T: T),
    "upgrad": Solver(upgrad, options=3),
}


def solve(
    gram: Tensor,
    solver: str,
    options: Sequence[float],
    given: Tensor | None = None,
    state: Tensor | None = None,
    order: Tensor | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights of every group by a solver's name. -> (w [T] or [G, T], report [4] or [G, 4])

    Raises:
        RuntimeError: there is no such solver, or the arguments' sizes are not its own.
    """
    if solver not in SOLVERS:
        raise RuntimeError(f"gradsurgery: there is no solver {solver}")
    found = SOLVERS[solver]
    found.check(solver, gram, options, given, state)
    T = gram.shape[-1]
    grams = gram.cpu().reshape(-1, T, T)
    finite = bool(grams.isfinite().all())
    states = None if state is None else state.detach().cpu().clone().reshape(len(grams), -1)
    if order is not None:
        orders = [order.cpu()] * len(grams)
    else:
        orders = [] if key is None else [random_order(key.cpu(), T, g) for g in range(len(grams))]
    weights, reports = [], []
    for g, K in enumerate(grams):
        if not bool(K.isfinite().all()):
            weights.append(torch.full((T,), torch.nan, dtype=torch.float64))
            reports.append(Report(converged=False, stationary=None).numbers())
            continue
        problem = Problem(
            K,
            tuple(options),
            None if given is None else given.cpu(),
            orders[g] if orders else None,
            None if states is None else states[g],
            None if key is None else key.cpu(),
            g,
        )
        w, report = found.run(problem)
        weights.append(w)
        reports.append(report.numbers())
    if finite and state is not None and states is not None:
        state.copy_(states.reshape(state.shape))
    if finite and key is not None:
        key[1] += 1
    batch = gram.shape[:-2]
    return (
        torch.stack(weights).reshape(*batch, T).to(gram.device),
        torch.stack(reports).reshape(*batch, 4).to(gram.device),
    )


LIBRARY.impl("solve", solve, "CompositeExplicitAutograd")
