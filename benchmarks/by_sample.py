"""PCGrad of its own for every sample of a batch: in one call, in a loop over the samples, and with torch.bmm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from cases import DTYPES, Case, gradients
from oracle import EXACT, pcgrad
from results import Row
from timing import Effort, interleave
from torch import Tensor

import gradsurgery as gs

Prepare = Callable[[Tensor], Callable[[], Tensor]]
"""G [T, B, N] -> the call that is timed, whose result [B, N] the next one may overwrite. Tasks meet in ascending order."""


@dataclass(frozen=True)
class Batch:
    """A point: T gradients of B samples of N coordinates."""

    tasks: int
    batch: int
    numel: int
    dtype: str = "float32"

    @property
    def floor_bytes(self) -> int:
        """(T + 1) B N b: what one read of the gradients and one write of the result move."""
        return (self.tasks + 1) * self.batch * self.numel * DTYPES[self.dtype].itemsize

    def gradients(self, device: torch.device) -> Tensor:
        """As of a case, cut into samples. [T, B, N]"""
        flat = gradients(Case(self.tasks, self.batch * self.numel, self.dtype), device)
        return flat.view(self.tasks, self.batch, self.numel)


def fused(grads: Tensor) -> Callable[[], Tensor]:
    out = torch.empty_like(grads[0])
    return lambda: gs.aggregate(grads, "pcgrad", order="ascending", out=out, samples=True)  # type: ignore[return-value]


def loop(grads: Tensor) -> Callable[[], Tensor]:
    out = torch.empty_like(grads[0])
    pairs = [(grads[:, b], out[b]) for b in range(grads.shape[1])]

    def run() -> Tensor:
        for rows, target in pairs:
            gs.aggregate(rows, "pcgrad", order="ascending", out=target)
        return out

    return run


def batched(grads: Tensor) -> Callable[[], Tensor]:
    """K of all samples by one product, the scans of all samples side by side, and one weighted product."""
    rows = grads.transpose(0, 1)  # [B, T, N]
    T = len(grads)

    def run() -> Tensor:
        K = torch.bmm(rows, rows.mT)
        w = torch.ones(K.shape[:2], dtype=K.dtype, device=K.device)
        for i in range(T):
            dots = K[:, i].clone()
            for j in range(T):
                if j != i:
                    square = K[:, j, j]
                    a = torch.where((dots[:, j] < 0) & (square > 0), -dots[:, j] / square, 0.0)
                    w[:, j] += a
                    dots += a[:, None] * K[:, j]
        return torch.bmm(w[:, None], rows)[:, 0]

    return run


CONTENDERS: Mapping[str, Prepare] = {"gradsurgery": fused, "loop": loop, "bmm": batched}


def check(name: str, run: Callable[[], Tensor], grads: Tensor) -> float:
    """The relative error of a call against the oracle on every sample.

    Raises:
        AssertionError: it is wrong; nothing of this contender may be timed.
    """
    order = [list(range(len(grads)))] * len(grads)
    expected = torch.stack([pcgrad(grads[:, b], order) for b in range(grads.shape[1])])
    error = float((run().double() - expected).norm() / expected.norm())
    if not error <= EXACT[grads.dtype]:
        raise AssertionError(
            f"{name}: off by {error:.1e} of the float64 oracle by sample, where {EXACT[grads.dtype]:.0e} is allowed."
        )
    return error


def sample_rows(
    batches: Iterable[Batch],
    effort: Effort,
    device: torch.device,
    contenders: Mapping[str, Prepare] = CONTENDERS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """A row for each batch and contender, with its error; the times of a batch come from the same rounds.

    Raises:
        AssertionError: a contender's result is wrong.
    """
    rows: list[Row] = []
    for batch in batches:
        grads = batch.gradients(device)
        calls = {name: prepare(grads) for name, prepare in contenders.items()}
        errors = {name: check(name, call, grads) for name, call in calls.items()}
        for name, times in interleave(calls, effort, device).items():
            row = {"kind": "by sample", **asdict(batch), "provider": name, **asdict(times)}
            rows.append({**row, "floor_gb_per_s": batch.floor_bytes / times.p50 / 1e9, "error": errors[name]})
        say(f"{batch}: " + ", ".join(f"{row['provider']} {row['p50'] * 1e6:.1f} us" for row in rows[-len(calls) :]))
    return rows
