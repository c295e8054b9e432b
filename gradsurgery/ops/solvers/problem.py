"""What the solvers K -> w have in common: the same words as ``csrc/weights/solver.h``, ``reduced.h``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One group of one step, on the CPU.

    Attributes:
        gram: K [T, T], float64, finite; symmetric, except where a solver says it is a cross-Gram matrix.
        options: the solver's own numbers, in the order of its header.
        given: a number a task, or None. [T]
        order: in which each task meets the others, or None. [T, T]
        state: the solver's memory between steps, updated in place, or None for a call without. float64
        key: (seed, step) of random draws, or None. [2] int64
        group: which of the groups this is.
    """

    gram: Tensor
    options: tuple[float, ...] = ()
    given: Tensor | None = None
    order: Tensor | None = None
    state: Tensor | None = None
    key: Tensor | None = None
    group: int = 0

    @property
    def tasks(self) -> int:
        """T."""
        return self.gram.shape[0]


@dataclass
class Report:
    """What a solver says of its answer; see ``csrc/weights/solver.h``."""

    converged: bool = True
    stationary: bool = False
    rank: int = -1
    iterations: int = 0

    def numbers(self) -> Tensor:
        """The four in order. [4] float64"""
        return torch.tensor(
            [float(self.converged), float(self.stationary), float(self.rank), float(self.iterations)],
            dtype=torch.float64,
            device="cpu",
        )


Solver = Callable[[Problem], tuple[Tensor, Report]]
"""(w [T] float64, report) of a problem."""


@dataclass(frozen=True)
class Reduced:
    """K without the rows of zero gradients, scaled by powers of two so that its diagonal lies in [1, 4).

    Attributes:
        gram: D^-1 K D^-1 without those rows. [n, n]
        scale: D. [n]
        task: which tasks they are. [n]
    """

    gram: Tensor
    scale: Tensor
    task: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Reduced:
        """The reduced problem of K."""
        task = (gram.diagonal() > 0).nonzero()[:, 0]
        _, exponent = torch.frexp(gram.diagonal()[task])
        scale = torch.ldexp(torch.ones(len(task), dtype=gram.dtype), torch.div(exponent - 1, 2, rounding_mode="floor"))
        return cls(gram[task][:, task] / scale[:, None] / scale, scale, task)

    def spread(self, v: Tensor, tasks: int) -> Tensor:
        """w of all tasks from v [n]: w_t = v_i / d_i, and 0 for zero gradients. [T]"""
        w = torch.zeros(tasks, dtype=v.dtype)
        w[self.task] = v / self.scale
        return w
