"""IMTL-G; see ``csrc/weights/imtlg.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report
from .spectrum import Cosines, components


def imtlg(problem: Problem) -> tuple[Tensor, Report]:
    """w = v / sum v with v_i = (C^+ 1)_i / |g_i|, and 0 where the sum is zero to rounding."""
    w = torch.zeros(problem.tasks, dtype=torch.float64)
    cosines = Cosines.of(problem.gram)
    if len(cosines.norm) == 0:
        return w, cosines.report()
    values, vectors = cosines.spectrum.kept()
    c = components(cosines.spectrum, torch.ones_like(cosines.norm)) / values
    per_length = cosines.reduced.scale.min() / cosines.reduced.scale / cosines.norm
    v = per_length * (vectors @ c)
    error = per_length * (vectors.abs() @ (c.abs() * (1 + 1 / values)))
    if abs(v.sum()) > max(2.0**-50, cosines.spectrum.error) * error.sum():
        w[cosines.reduced.task] = v / v.sum()
    return w, cosines.report()
