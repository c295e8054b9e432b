"""Aligned-MTL; see ``csrc/weights/alignedmtl.h``. options: scale, preference of every task; given: preferences"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Reduced, Report
from .spectrum import RANK_TOLERANCE, Spectrum, stationarity

SCALES = (
    lambda values: values[-1],
    lambda values: values.median(),  # the lower one
    lambda values: values.mean(),
)


def alignedmtl(problem: Problem) -> tuple[Tensor, Report]:
    """w = sum_k sqrt(s / lambda_k) v_k v_k^T pref over the eigenvalues of K above rounding."""
    reduced = Reduced.of(problem.gram)
    n = len(reduced.scale)
    w = torch.zeros(problem.tasks, dtype=torch.float64)
    if n == 0:
        return w, Report(rank=0)
    unit = reduced.scale / reduced.scale.max()
    spectrum = Spectrum.of(reduced.gram * torch.outer(unit, unit), 0.0, n * RANK_TOLERANCE)
    pref = torch.full_like(unit, problem.options[1]) if problem.given is None else problem.given[reduced.task]
    values, vectors = spectrum.kept()
    s = SCALES[int(problem.options[0])](values)
    w[reduced.task] = vectors @ ((s / values).sqrt() * (vectors.T @ pref))
    return w, Report(rank=spectrum.rank, stationary=stationarity(reduced.gram, spectrum.rank, spectrum.vectors[:, -1] * unit))
