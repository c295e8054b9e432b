"""What the solvers K -> w have in common: the same words as ``csrc/weights/solver.h``, ``reduced.h``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What a solver says of its answer; see ``csrc/weights/solver.h``. ``stationary`` is None where it was not examined."""

    converged: bool = True
    stationary: bool | None = False
    rank: int = -1
    iterations: int = 0

    def numbers(self) -> Tensor:
        """The four in order. [4] float64"""
        stationary = -1.0 if self.stationary is None else float(self.stationary)
        return torch.tensor(
            [float(self.converged), stationary, float(self.rank), float(self.iterations)],
            dtype=torch.float64,
            device="cpu",
        )


@dataclass(frozen=True)
class Solver:
    """A solver, and what it takes.

    Attributes:
        run: (w [T] float64, report) of a problem.
        options: how many numbers it takes.
        state_size: numbers of one group's memory for T tasks, or None for a solver without.
    """

    run: Callable[[Problem], tuple[Tensor, Report]]
    options: int = 0
    state_size: Callable[[int], int] | None = None

    def check(self, name: str, gram: Tensor, options: Sequence[float], given: Tensor | None, state: Tensor | None) -> None:
        """What ``csrc/weights/solve_tensors.h`` refuses, too.

        Raises:
            RuntimeError: the arguments' sizes are not the solver's.
        """
        if gram.dim() not in (2, 3) or gram.shape[-1] != gram.shape[-2] or gram.numel() == 0:
            raise RuntimeError("gradsurgery: gram must be [T, T] or [G, T, T]")
        T, groups = gram.shape[-1], 1 if gram.dim() == 2 else gram.shape[0]
        if len(options) != self.options:
            raise RuntimeError(f"gradsurgery: solver {name} takes {_counted(self.options, 'option')}, found {len(options)}")
        if given is not None and list(given.shape) != [T]:
            raise RuntimeError(f"gradsurgery: given must be [{T}], a number a task")
        if state is None:
            return
        if self.state_size is None:
            raise RuntimeError(f"gradsurgery: solver {name} takes no state")
        wanted = groups * self.state_size(T)
        if state.numel() != wanted:
            raise RuntimeError(
                f"gradsurgery: solver {name} takes a state of {_counted(wanted, 'number')} for {_counted(groups, 'group')} of "
                f"{_counted(T, 'task')}, found {state.numel()}"
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


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
