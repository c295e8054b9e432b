"""What is right for a solver: how far weights are from solving their method's problem, relative to what the terms add up to.

Each function takes K [T, T], w [T] and the method's options, both tensors in float64, and knows nothing of how w was found. The
problems: tests and documentation of ``gradsurgery.methods``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Certificate = Callable[..., float]


def mgda(K: Tensor, w: Tensor) -> float:
    """w >= 0 sums to one, and no <g_i, out> is below |out|^2: then out is the shortest vector of the hull."""
    Kw = K @ w
    gap = w @ Kw - Kw.min()
    return _worst(float(gap / (w.abs() @ K.abs() @ w.abs())), _outside(w))


def cagrad(K: Tensor, w: Tensor, c: float) -> float:
    """w = b + v with v = λ x, x in the simplex: |v's gradient| = c |g_0|, and x is stationary for x.Kb + c |g_0| |x's gradient|."""
    b = torch.full_like(w, 1 / len(w))
    q, v = K @ b, w - b
    radius, scale = c * (b @ q).sqrt(), v.sum()
    x = v / scale
    length = (x @ K @ x).sqrt()
    slope = q + radius / length * (K @ x)
    magnitude = K.abs() @ (b + radius / length * x.abs())
    gap = (x @ slope - slope.min()) / magnitude.max()
    return _worst(float(gap), float((scale * length / radius - 1).abs()), _outside(x))


def fairgrad(K: Tensor, w: Tensor, alpha: float) -> float:
    """K w = w^(-1/α), task by task."""
    if not bool((w > 0).all()):
        return torch.inf
    return float(((K @ w - w ** (-1 / alpha)).abs() / (K.abs() @ w)).max())


def nashmtl(K: Tensor, w: Tensor) -> float:
    """w_i (K w)_i is the same for every task, and the gradient has length one, to which it is clipped."""
    if not bool((w > 0).all()):
        return torch.inf
    return float(((w * (K @ w) - 1 / len(w)).abs() / (w * (K.abs() @ w))).max())


def imtlg(K: Tensor, w: Tensor) -> float:
    """w sums to one, and the gradient projects alike on every task's direction."""
    d = K.diagonal().sqrt()
    shadows = K @ w / d
    return _worst(float((shadows.max() - shadows.min()) / (K.abs() @ w.abs() / d).max()), abs(float(w.sum()) - 1))


def alignedmtl(K: Tensor, w: Tensor) -> float:
    """w = √λ_min K^(-1/2) 1/T."""
    values, vectors = torch.linalg.eigh(K)
    expected = values[0].sqrt() * (vectors / values.sqrt()) @ vectors.T @ torch.full_like(w, 1 / len(w))
    return apart(K, w, expected)


def config(K: Tensor, w: Tensor) -> float:
    """The gradient makes the same angle with every task, and is as long as the tasks' projections on it together."""
    d = K.diagonal().sqrt()
    shadows, length = K @ w / d, w @ K @ w
    spread = (shadows.max() - shadows.min()) / (K.abs() @ w.abs() / d).max()
    return _worst(float(spread), float((length - (K @ w).sum()).abs() / length), 0.0 if bool((shadows > 0).all()) else torch.inf)


def dualproj(K: Tensor, w: Tensor) -> float:
    """w is the projection of the mean on the cone where no task gets worse."""
    return apart(K, w, _projected(K, torch.full_like(w, 1 / len(w))))


def upgrad(K: Tensor, w: Tensor) -> float:
    """w is the mean of the tasks' projections on the cone where no task gets worse."""
    return apart(
        K, w, sum((_projected(K, e) for e in torch.eye(len(w), dtype=w.dtype, device=w.device)), torch.zeros_like(w)) / len(w)
    )


CERTIFICATES: Mapping[str, Certificate] = {
    function.__name__: function for function in (mgda, cagrad, fairgrad, nashmtl, imtlg, alignedmtl, config, dualproj, upgrad)
}


def apart(K: Tensor, w: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected|, as gradients."""
    difference = w - expected
    return float((difference @ K @ difference).clamp(min=0).sqrt() / (expected @ K @ expected).sqrt())


def _worst(*residuals: float) -> float:
    """The largest; NaN if one is NaN."""
    return float(torch.tensor(residuals, dtype=torch.float64).max())


def _outside(x: Tensor) -> float:
    """How far x is from the simplex."""
    return _worst(float((-x).max()), abs(float(x.sum()) - 1), 0.0)


def _projected(K: Tensor, u: Tensor) -> Tensor:
    """u + z with the z >= 0 that makes the gradient shortest: by Lawson and Hanson's algorithm on a factor of K."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # it has no stubs

    factor = torch.linalg.cholesky(K).T.cpu().numpy()  # [T, T], its Gram matrix is K
    z, _ = nnls(factor, -factor @ u.cpu().numpy())
    return u + torch.from_numpy(z).to(u)
