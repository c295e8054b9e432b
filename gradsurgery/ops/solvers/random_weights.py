"""Random weights; see ``csrc/weights/random_weights.h``. given: which tasks take part; needs a key"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import philox
from .problem import Problem, Report


def random_weights(problem: Problem) -> tuple[Tensor, Report]:
    """softmax(z) with z ~ N(0, I), by Box and Muller on Philox words."""
    if problem.key is None:
        return torch.full((problem.tasks,), torch.nan, dtype=torch.float64), Report(stationary=None)
    task = torch.arange(problem.tasks, device="cpu")
    words = philox(problem.key[0], problem.key[1], torch.full_like(task, problem.group), task << 16)
    high, low = (words[:, 0::2] >> 5).double(), (words[:, 1::2] >> 6).double()
    uniform = (high * 2.0**26 + low + 0.5) * 2.0**-53
    z = (-2.0 * uniform[:, 0].log()).sqrt() * (2.0 * math.pi * uniform[:, 1]).cos()
    if problem.given is not None:
        z = torch.where(problem.given != 0, z, -torch.inf)
    return z.softmax(0), Report(stationary=None)
