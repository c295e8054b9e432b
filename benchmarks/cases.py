"""What is measured: the grid of (T, N, dtype), and gradients that conflict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CHUNK = 1 << 20
_EXPLICIT_BYTES = 60e9  # more traffic than this a call, and an explicit algorithm is left out


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    tasks: int
    numel: int
    dtype: str = "float32"

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def floor_bytes(self) -> int:
        """(2T + 1) N b: G read twice, the result written once. No algorithm with weights that depend on all of G moves less."""
        return (2 * self.tasks + 1) * self.numel * self.itemsize

    def __str__(self) -> str:
        return f"T={self.tasks} N={self.numel:.0e} {self.dtype}"

    def left_out(self, provider: str) -> str | None:
        """Why a provider is not measured here, or None."""
        # T squares, T copies and sums; a dot for every pair, and for every second one an update, or an expression and a norm.
        projection = {"explicit": 3, "written": 9}.get(provider)
        if projection is None:
            return None
        moved = (self.tasks * 6 + self.tasks * (self.tasks - 1) * (2 + projection / 2)) * self.numel * self.itemsize
        return f"moves {moved / 1e9:.0f} GB a call" if moved > _EXPLICIT_BYTES else None


TASKS = (2, 3, 4, 8, 16)
NUMELS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 30_000_000)


SMALL = [Case(2, 1_000), Case(4, 1_000), Case(4, 100_000), Case(4, 100_000, "bfloat16")]  # to see that everything runs


def grid() -> list[Case]:
    """All cases."""
    cases = [Case(tasks, numel) for tasks in TASKS for numel in NUMELS]
    return cases + [Case(4, numel, "bfloat16") for numel in (1_000_000, 10_000_000)]


def gradients(case: Case, device: torch.device) -> Tensor:
    """G = A Z [T, N], Z standard normal, A a random mix of the tasks: the cosines, and about half of the pairs in conflict, depend
    on T alone, so that every N sees the same projections.
    """
    generator = torch.Generator().manual_seed(case.tasks)
    mix = torch.eye(case.tasks) + 0.6 * torch.randn(case.tasks, case.tasks, generator=generator) / case.tasks**0.5
    generator = torch.Generator(device).manual_seed(case.numel)
    mix = mix.to(device)
    grads = torch.empty(case.tasks, case.numel, dtype=DTYPES[case.dtype], device=device)
    for start in range(0, case.numel, _CHUNK):
        n = min(_CHUNK, case.numel - start)
        grads[:, start : start + n] = mix @ torch.randn(case.tasks, n, generator=generator, device=device)
    return grads
