"""What ``torch.compile`` makes of plain PyTorch: the explicit algorithm and the one in Gram space, without a decision on the host.

Both project in ascending order: a random one would be compiled anew for each call. They do as many projections, so that they cost
the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .provider import Provider, Run


def explicit(grads: Tensor) -> Tensor:
    """The paper's Algorithm 1 over full vectors, in float32; a projection that is not needed subtracts nothing. [T, N] -> [N]"""
    rows = grads.unbind()
    squares = [g.float().square().sum() for g in rows]
    total = torch.zeros_like(rows[0], dtype=torch.float32)
    for i, own in enumerate(rows):
        projected = own.float()
        for j, other in enumerate(rows):
            if j != i:
                dot = (projected * other.float()).sum()
                projected = projected - torch.where(dot < 0, dot / squares[j], 0.0) * other.float()
        total = total + projected
    return total.to(grads.dtype)


def gram(grads: Tensor) -> Tensor:
    """K by a matrix product in the gradients' type, w by scans over its rows, and a weighted product. [T, N] -> [N]"""
    K = torch.mm(grads, grads.T).double()
    weights = [torch.ones_like(K[0, 0])] * len(K)
    for i in range(len(K)):
        dots = K[i]
        for j in range(len(K)):
            if j != i:
                a = torch.where(dots[j] < 0, -dots[j] / K[j, j], 0.0)
                weights[j] = weights[j] + a
                dots = dots + a * K[j]
    return torch.mv(grads.T, torch.stack(weights).to(grads.dtype))


def ascending(tasks: int) -> list[list[int]]:
    return [list(range(tasks))] * tasks


def compiled(function: Callable[[Tensor], Tensor], title: str, backend: str) -> Provider:
    """A provider of one of the two; its name is the function's, and "compiled"."""

    def prepare(grads: Tensor) -> Run:
        # For any N, as compiling takes much longer than what is measured.
        torch._dynamo.mark_dynamic(grads, 1)
        call = torch.compile(function, backend=backend, fullgraph=True)
        return lambda: call(grads)

    return Provider(f"{function.__name__}_compiled", title, prepare, ascending)


def compiled_providers(backend: str) -> dict[str, Provider]:
    """Both, by name."""
    both = (compiled(gram, "Gram, compiled", backend), compiled(explicit, "explicit, compiled", backend))
    return {provider.name: provider for provider in both}
