"""How far two right answers may be apart: one table by dtype, and the two comparisons that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """For results stored in one dtype.

    Attributes:
        rounding: one unit in the last place, relative: both answers were rounded once.
        gram: |dK_ij| / (|g_i| |g_j|) on CUDA, where products of 32- and 16-bit gradients are added in short float32 runs.
        combine: error over sum_t |w_t g_t| on CUDA, where those gradients are combined in float32.
    """

    rounding: float
    gram: float
    combine: float


TOLERANCES = {
    torch.float64: Tolerance(rounding=2.0**-52, gram=1e-13, combine=1e-14),
    torch.float32: Tolerance(rounding=2.0**-23, gram=3e-6, combine=1e-6),
    torch.bfloat16: Tolerance(rounding=2.0**-7, gram=3e-6, combine=1e-6),
    torch.float16: Tolerance(rounding=2.0**-10, gram=3e-6, combine=1e-6),
}
DTYPES = tuple(TOLERANCES)

# On the CPU every product and sum is float64, whatever the gradients are.
_FLOAT64 = TOLERANCES[torch.float64]
_SMALLEST = {dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in DTYPES}


def assert_gram_close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """K against float64, each entry measured by the two norms; ``dtype`` is the gradients' (it matters on CUDA only)."""
    assert actual.dtype == torch.float64
    assert torch.equal(actual, actual.T), "K must be symmetric to the bit"
    norms = expected.diagonal().sqrt()
    allowed = (TOLERANCES[dtype] if actual.is_cuda else _FLOAT64).gram * torch.outer(norms, norms)
    error = (actual - expected).abs()
    assert bool((error <= allowed).all()), f"largest excess {(error - allowed).max():.3e} over\n{allowed}\nin\n{error}"


def assert_combined_close(actual: Tensor, expected: Tensor, magnitude: Tensor) -> None:
    """A combined gradient in its dtype against float64; ``magnitude`` is sum_t |w_t g_t|, coordinate by coordinate."""
    tolerance = TOLERANCES[actual.dtype]
    summing = (tolerance if actual.is_cuda else _FLOAT64).combine
    allowed = tolerance.rounding * expected.abs() + summing * magnitude + _SMALLEST[actual.dtype]
    error = (actual.double() - expected).abs()
    assert bool((error <= allowed).all()), f"error over the allowed, at worst: {(error / allowed).max():.3f}"
