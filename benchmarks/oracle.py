"""What is right: PCGrad over full vectors in float64, and the check that every provider passes before it is timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from providers.provider import Provider, Run, seed_all
from torch import Tensor

# All of |result - oracle| / |oracle|. Up to this many coordinates rounding is small, and a projection that is left out or out of
# turn shows: at 1e-3 at least (T = 16), at 4e-2 for T = 4. bfloat16 has three digits.
SMALL_NUMEL = 10_000
EXACT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# A Gram matrix that is summed in float32 is off by 1e-2 at N = 3e7. That is no wrong algorithm; the row tells how far off it is.
ROUNDED = 5e-2


def pcgrad(grads: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """sum_i of g_i after its projections off the g_j it conflicts with, j in the given order. [N] float64

    Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, Algorithm 1.
    """
    total = torch.zeros(grads.shape[1], dtype=torch.float64, device=grads.device)
    for i, order in enumerate(orders):
        projected = grads[i].to(torch.float64, copy=True)
        for j in order:
            if j == i:
                continue
            other = grads[j].double()
            dot = torch.dot(projected, other)
            if dot < 0:
                projected -= dot / torch.dot(other, other) * other
        total += projected
    return total


def check(provider: Provider, run: Run, grads: Tensor, seed: int = 0) -> float:
    """The relative error of a provider's call on these gradients.

    Raises:
        AssertionError: the result is wrong; nothing of this provider may be timed.
    """
    tolerance = EXACT[grads.dtype] if grads.shape[1] <= SMALL_NUMEL else ROUNDED
    seed_all(seed)
    orders = provider.orders(grads.shape[0])
    seed_all(seed)
    result = run()
    if result.shape != grads.shape[1:] or result.dtype != grads.dtype:
        found = f"{result.dtype} {list(result.shape)}"
        raise AssertionError(f"{provider.name}: expected {grads.dtype} {list(grads.shape[1:])}, found {found}.")
    expected = pcgrad(grads, orders)
    error = float((result.double() - expected).norm() / expected.norm())
    if not error <= tolerance:
        raise AssertionError(
            f"{provider.name}: off by {error:.1e} of the float64 oracle on {list(grads.shape)} {grads.dtype}, where "
            f"{tolerance:.0e} is allowed."
        )
    return error
