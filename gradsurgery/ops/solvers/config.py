"""ConFIG; see ``csrc/weights/config.h``. options: length; given: pref"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report
from .spectrum import Cosines, components

MEANS = (
    lambda d: d.min(),
    lambda d: d.max(),
    lambda d: len(d) / (1 / d).sum(),
    lambda d: d.mean(),
    lambda d: d.log().mean().exp(),
)


def config(problem: Problem) -> tuple[Tensor, Report]:
    """w = length * v / |G^T v| with v_i = (C^+ pref)_i / |g_i|."""
    cosines = Cosines.of(problem.gram)
    reduced, norm = cosines.reduced, cosines.norm
    pref = torch.ones_like(norm) if problem.given is None else problem.given[reduced.task]
    values, vectors = cosines.spectrum.kept()
    y = vectors @ (components(cosines.spectrum, pref) / values) / norm
    product = reduced.gram @ y
    square = y @ product
    w = torch.zeros(problem.tasks, dtype=torch.float64)
    if square > 0:
        scale = reduced.scale / reduced.scale.max()
        kind = int(problem.options[0])
        factor = scale @ product / square if kind == 0 else MEANS[kind - 1](norm * scale) / square.sqrt()
        w[reduced.task] = factor * y / scale
    return w, cosines.report()
