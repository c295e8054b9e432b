"""min ½ yᵀC y − bᵀy over y >= 0 by the active-set method of ``csrc/weights/active_set.h``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 2.0**-33  # of a slope's magnitude: what may be left of it where rounding stops the search
MOST_RIDGE = 2.0**-10  # a C that needs more is no Gram matrix


@dataclass
class Minimum:
    """What ``minimise`` found.

    Attributes:
        y: the minimum; or, where ``bounded`` is False, a ray: y >= 0, C y = 0, bᵀy > 0. [n]
        bounded: whether there is a minimum.
        converged: whether no slope is more negative than rounding explains.
        active: the tasks with y > 0.
        iterations: systems solved.
    """

    y: Tensor
    bounded: bool
    converged: bool
    active: list[int]
    iterations: int


def rounding_of(n: int) -> float:
    """A few units in the last place of sums over n tasks."""
    return 4.0 * (n + 2) * 2.0**-52


class Quadratic:
    """C [n, n], and what searches have found of its errors.

    Attributes:
        C: the matrix, ridge included.
        bend: the most negative dᵀC d found, over sum_i C_ii d_i²: C is in error by as much.
        ridge: what has been added to C's diagonal, over that.
    """

    def __init__(self, C: Tensor) -> None:
        self.C, self.bend, self.ridge = C.clone(), 0.0, 0.0

    def add_ridge(self) -> bool:
        """Of the size of the negative curvature met, then four times that, then sixteen. Returns whether it may grow."""
        error = max(-self.bend, rounding_of(len(self.C)))
        ridge = max(error, 4 * self.ridge)
        if ridge > min(16 * error, MOST_RIDGE):
            return False
        self.C.diagonal().mul_((1 + ridge) / (1 + self.ridge))
        self.ridge = ridge
        return True


class ActiveSet:
    """The problem and where the search stands; see ``minimise``."""

    def __init__(self, form: Quadratic, b: Tensor, noise: Tensor, excluded: int, rays: bool, positive: bool) -> None:
        self.form, self.C, self.b, self.noise, self.excluded = form, form.C, b, noise, excluded
        self.rays, self.positive = rays, positive
        self.n = len(b)
        self.unit = rounding_of(self.n)
        self.y = torch.zeros_like(b)
        self.active: list[int] = []
        self.barred: set[int] = set()
        self.iterations, self.patience = 0, 8 * self.n + 16

    def slopes(self) -> tuple[Tensor, Tensor]:
        """C y - b, and what its rounding errors are measured by. [n]"""
        return self.C @ self.y - self.b, self.C.abs() @ self.y + self.noise

    def search(self) -> Minimum:
        """Lets tasks enter until no slope is negative."""
        while True:
            slope, magnitude = self.slopes()
            tolerance = self.unit if self.iterations <= self.patience else ENOUGH
            falling = (slope < 0) & (slope < -tolerance * magnitude)
            falling[[*self.active, *self.barred]] = False
            if self.excluded >= 0:
                falling[self.excluded] = False
            if not falling.any():
                break
            entering = int(slope.masked_fill(~falling, torch.inf).argmin())
            kept, gain, noise = self.y.clone(), float(self.b @ self.y), self.unit * float(self.y @ magnitude)
            self.active.append(entering)
            end = self._descend(entering)
            if end == "ray":
                return Minimum(self.y, False, True, self.active, self.iterations)
            if self.b @ self.y < max(gain - noise, gain / 2):  # rounding made it worse
                self.y = kept
                self.active = kept.nonzero()[:, 0].tolist()
                self.barred.add(entering)
            elif end == "minimum" and self.iterations <= self.patience:
                self.barred.clear()
        allowed = torch.maximum(ENOUGH * magnitude, self.unit * magnitude.max()) if self.n else magnitude
        left = [i for i in self.barred if slope[i] < -allowed[i]]
        return Minimum(self.y, True, not left, self.active, self.iterations)

    def _descend(self, entering: int) -> str:
        """To the minimum over the active tasks: "minimum", "refused" (the entering task has left again) or "ray"."""
        result = "minimum"
        while self.active:
            self.iterations += 1
            L, last = self._factor()
            bounded, ray, tasks = last == len(self.active), False, self.active[: last + 1]
            if bounded:
                d = _solve(self.C[tasks][:, tasks], L, self.b[tasks]) - self.y[tasks]
            else:
                d = self._dependence(tasks, L)
                bend = float(self.C[tasks[-1], tasks] @ d / (self.C.diagonal()[tasks] @ d.square()))
                self.form.bend = min(self.form.bend, bend - self.form.ridge)
                ray = bool((d >= 0).all()) or self._is_null(tasks, d.clamp_min(0))
                falls, joins = self._falls(tasks, d) or (ray and self.positive), tasks[-1] == entering
                if not (falls and self.rays if ray else falls or joins):
                    d, ray = -d, False  # out with the last
            if ray:
                self.y = torch.zeros_like(self.b)
                self.y[tasks] = d.clamp_min(0)
                return "ray"
            length, first = self._reach(tasks, d, bounded)
            self.y[tasks] = (self.y[tasks] + length * d).clamp_min(0)
            if first < 0:
                return result
            leaving = self.active.pop(first)
            self.y[leaving] = 0.0
            if leaving == entering or self.iterations > self.patience:
                self.barred.add(leaving)
            if leaving == entering:
                result = "refused"
                if length == 0:
                    break
        return result

    def _reach(self, tasks: list[int], d: Tensor, bounded: bool) -> tuple[float, int]:
        """How far along d all y stay positive, and whose position is the first to reach zero, or -1."""
        length, first = 1.0 if bounded else torch.inf, -1
        for k, (at, change) in enumerate(zip(self.y[tasks].tolist(), d.tolist(), strict=True)):
            if (at + change > 0) if bounded else change >= 0:
                continue
            reach = at / -change if change < 0 else 0.0
            if reach <= length:
                length, first = reach, k
        return length, first

    def _factor(self) -> tuple[Tensor, int]:
        """L of the leading active tasks that are independent to rounding, and their number."""
        L, count = _cholesky(self.C[self.active][:, self.active], self.unit)
        if count == len(self.active) and L[-1, -1] <= 2.0**-6:
            shorter = L[:-1, :-1]
            d = self._dependence(self.active, shorter)
            if L[-1, -1] ** 2 <= self.unit * (d.square() @ self.C.diagonal()[self.active]):
                return shorter, count - 1
        return L, count

    def _dependence(self, tasks: list[int], L: Tensor) -> Tensor:
        """d with d_last = 1 and C d = 0 but for the row of the last of ``tasks``."""
        *others, last = tasks
        d = torch.ones(len(tasks), dtype=self.C.dtype)
        if others:
            d[:-1] = -torch.cholesky_solve(self.C[others, last][:, None], L)[:, 0]
        return d

    def _is_null(self, tasks: list[int], d: Tensor) -> bool:
        """Whether the gradients combined by d vanish as far as K can tell."""
        C = self.C[tasks][:, tasks]
        return bool(d @ C @ d <= self.unit * (d.abs() @ C.abs() @ d.abs()))

    def _falls(self, tasks: list[int], d: Tensor) -> bool:
        """Whether the objective falls along d with C d = 0, by more than rounding errors."""
        slope, magnitude = self.slopes()
        return bool(-(d @ slope[tasks]) > self.unit * (d.abs() @ magnitude[tasks]))


def minimise(form: Quadratic, b: Tensor, noise: Tensor, excluded: int = -1, rays: bool = True, positive: bool = False) -> Minimum:
    """The minimum, from y = 0. Where C is not positive semidefinite and none is found, C gets a ridge.

    Args:
        form: C, positive semidefinite but for errors, with a diagonal of order one.
        b: the linear term. [n]
        noise: the sum of absolute values that b was computed from. [n]
        excluded: a task whose y stays 0.
        rays: whether the objective may fall for ever.
        positive: whether b > 0, so that it falls along every ray.
    """
    iterations = 0
    while True:
        found = ActiveSet(form, b, noise, excluded, rays, positive).search()
        iterations = found.iterations = iterations + found.iterations
        if not found.bounded or found.converged or not form.add_ridge():
            return found


def solve_active(C: Tensor, active: list[int], right: Tensor) -> Tensor | None:
    """C_SS⁻¹ right_S, or None where C_SS is singular. [|S|]"""
    square = C[active][:, active]
    L, count = _cholesky(square, rounding_of(len(C)))
    return _solve(square, L, right[active]) if count == len(active) else None


def _cholesky(A: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """L of the leading rows of A that are independent to rounding, and their number."""
    L = torch.zeros_like(A)
    for k in range(len(A)):
        row = A[k, :k].clone()
        for j in range(k):
            row[j] = (row[j] - row[:j] @ L[j, :j]) / L[j, j]
        pivot = A[k, k] - row @ row
        if not pivot > tolerance * A[k, k]:
            return L[:k, :k], k
        L[k, :k], L[k, k] = row, pivot.sqrt()
    return L, len(A)


def _solve(A: Tensor, L: Tensor, right: Tensor) -> Tensor:
    """A⁻¹ right with A = L Lᵀ, refined once."""
    x = torch.cholesky_solve(right[:, None], L)[:, 0]
    return x + torch.cholesky_solve((right - A @ x)[:, None], L)[:, 0]
