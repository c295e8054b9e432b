"""Certificates: how far weights are from what defines them, computed from K and w alone, for many K at once.

A certificate takes K [B, T, T], w [B, T] and the method's options, and returns a relative residual for each K [B]. Residuals are
computed in extended precision, and measured beyond what rounding w and the solver's own sums explain: a few T 2^-52 of the sum of
magnitudes, which no answer in float64 can do without. None of them shares an algorithm with a solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

import gradsurgery as gs

Wide = npt.NDArray[np.longdouble]
Certificate = Callable[[Wide, Wide, Mapping[str, Any]], Wide]

ROUNDING = 2.0**-52
CERTIFIED = 1e-9


def wide(tensor: Tensor) -> Wide:
    return tensor.numpy().astype(np.longdouble)


def image(K: Wide, w: Wide) -> tuple[Wide, Wide]:
    """K w and |K| |w|, the magnitude by which its rounding is measured. [B, T] each"""
    return (K @ w[:, :, None])[:, :, 0], (np.abs(K) @ np.abs(w)[:, :, None])[:, :, 0]


def beyond(residual: Wide, scale: Wide, magnitude: Wide, tasks: int, sums: float = 8.0) -> Wide:
    """|residual| / scale as far as it is more than ``sums`` roundings of ``magnitude`` a task."""
    excess = np.maximum(np.abs(residual) - sums * tasks * ROUNDING * magnitude, 0.0)
    return np.where(excess > 0.0, excess / np.where(scale > 0.0, scale, 1.0), 0.0)


def diagonal(K: Wide) -> Wide:
    return np.diagonal(K, axis1=1, axis2=2)


def fairgrad(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """|(K w)_i - w_i^(-1/alpha)| over w_i^(-1/alpha).

    Infinite unless w > 0, and where w itself is a combination that vanishes: however large, it solves nothing.
    """
    T = K.shape[1]
    Kw, magnitude = image(K, w)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = w ** np.longdouble(-1 / options["alpha"])
    error = beyond(Kw - target, target, magnitude, T, sums=2.0).max(1)
    reach = (w * np.sqrt(diagonal(K))).sum(1)
    return np.where((w > 0).all(1) & ((w * Kw).sum(1) > 8.0 * T * ROUNDING * reach**2), error, np.inf)


def nashmtl(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """That of K a = 1 / a, for w = a scaled from the length sqrt(T) of the combined gradient to at most max_norm."""
    norm = np.sqrt(np.longdouble(K.shape[1]))
    clipped = 0.0 < options["max_norm"] < norm
    return fairgrad(K, w * norm / np.longdouble(options["max_norm"]) if clipped else w, {"alpha": 1.0})


def mgda(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """How much less than w^T K w some (K w)_i is, over w^T K w; infinite outside of the simplex."""
    Kw, magnitude = image(K, w)
    T, square = K.shape[1], (w * Kw).sum(1)
    gap = np.maximum(square[:, None] - Kw, 0.0)
    error = beyond(gap, square[:, None], magnitude + (w * magnitude).sum(1)[:, None], T).max(1)
    return np.where((w >= 0).all(1) & (np.abs(w.sum(1) - 1.0) <= 8.0 * T * ROUNDING), error, np.inf)


def cagrad(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """For u = w - 1/T, which is >= 0: (K w)_i is least where u_i > 0, and sqrt(u^T K u) = c |g_0|."""
    assert options["rescale"] == 0
    T = K.shape[1]
    mean = np.full_like(w, 1 / np.longdouble(T))
    u = w - mean
    (Kw, of_w), (Ku, of_u), (Kb, of_b) = image(K, w), image(K, u), image(K, mean)
    total = u.sum(1)
    share = u / np.where(total > 0.0, total, 1.0)[:, None]
    gap = np.maximum((share * Kw).sum(1) - Kw.min(1), 0.0)
    least = np.take_along_axis(of_w, Kw.argmin(1)[:, None], 1)[:, 0]
    optimal = beyond(gap, (share * of_w).sum(1), (share * of_w).sum(1) + least, T)
    square = np.longdouble(options["c"]) ** 2 * (mean * Kb).sum(1)
    of_lengths = (np.abs(u) * of_u).sum(1) + options["c"] ** 2 * (mean * of_b).sum(1)
    length = beyond((u * Ku).sum(1) - square, square, of_lengths, T)
    positive = (u >= -8.0 * T * ROUNDING * np.abs(w).max(1)[:, None]).all(1)
    return np.where(positive, np.maximum(optimal, length), np.inf)


def complementary(K: Wide, w: Wide, start: Wide, least: Wide | float = 0.0) -> Wide:
    """For z = w - start: z >= 0, K w >= least, and z_i (K w - least)_i = 0, by the lesser of both, each as a share of its natural
    size. [B, T]

    That of (K w)_i is |g_i| |sum_t w_t g_t|; where this vanishes, all that K tells of it is noise of |g_i| sum_t w_t |g_t|.
    """
    T, norms = K.shape[1], np.sqrt(diagonal(K))
    Kw, _ = image(K, w)
    length = np.sqrt(np.maximum((w * Kw).sum(1), 0.0))[:, None]
    reach = (np.abs(w) * norms).sum(1)[:, None]
    change = beyond(w - start, reach / norms, np.abs(start), T) * np.sign(w - start)
    progress = beyond(Kw - least, norms * length, norms * reach + np.abs(least), T, sums=64.0) * np.sign(Kw - least)
    return np.abs(np.minimum(change, progress))


def dual_cone(K: Wide, w: Wide, start: Wide) -> Wide:
    """That w is the projection of ``start`` on the dual cone."""
    return complementary(K, w, start).max(1)


def dualproj(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """That of the projection of the mean on the dual cone."""
    return dual_cone(K, w, np.full_like(w, 1 / np.longdouble(K.shape[1])))


def upgrad(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """K w against the sum of the projections of the g_i / T, each by ``dualproj`` with a certificate of its own."""
    T = K.shape[1]
    narrow = torch.from_numpy(K.astype(np.float64))
    total, error = np.zeros_like(w), np.zeros(len(w), dtype=np.longdouble)
    for i in range(T):
        preference = [float(j == i) / T for j in range(T)]
        part = wide(gs.weights(narrow, "dualproj", pref=preference))
        error = np.maximum(error, dual_cone(K, part, np.broadcast_to(np.array(preference, dtype=np.longdouble), w.shape)))
        total += part
    difference, _ = image(K, w - total)
    _, magnitude = image(K, total)
    apart = beyond(difference, magnitude, magnitude, T).max(1)
    return np.where((w >= 0).all(1), np.maximum(error, apart), np.inf)


def pcd(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """In units in which w_0 is s_0, with s_i = 1 / sqrt(|g_i|^2 + eps): every other task gets tau s_i |g_i|^2, and no more where
    w_i > 0; and |sum_t w_t g_t| = |g_0|. Infinite where the first task has no weight."""
    squares = diagonal(K)
    s = 1 / np.sqrt(squares + np.longdouble(options["eps"]))
    start = np.where(np.arange(w.shape[1]) == 0, s, 0.0)
    leads = w[:, 0] > 0
    u = w / np.where(leads, w[:, 0], 1.0)[:, None] * s[:, :1]
    others = complementary(K, u, start, np.longdouble(options["tau"]) * s * squares)[:, 1:].max(1)
    Kw, magnitude = image(K, w)
    length = beyond((w * Kw).sum(1) - squares[:, 0], squares[:, 0], (np.abs(w) * magnitude).sum(1), w.shape[1])
    return np.where(leads, np.maximum(others, length), np.inf)


def on_range(K: Wide, *vectors: Wide) -> list[Wide]:
    """[B, T] each, projected on the range of the cosines where some of their eigenvalues are zero to rounding."""
    norms = np.sqrt(diagonal(K))
    values, basis = np.linalg.eigh((K / norms[:, :, None] / norms[:, None]).astype(np.float64))
    kept = values > 1e-14 + 1e-15 * values[:, -1:]
    basis = (basis * kept[:, None]).astype(np.longdouble)
    projected = [(basis @ (np.swapaxes(basis, 1, 2) @ vector[:, :, None]))[:, :, 0] for vector in vectors]
    return [np.where(kept.all(1)[:, None], vector, part) for vector, part in zip(vectors, projected, strict=True)]


def equal_projections(K: Wide, w: Wide) -> tuple[Wide, Wide]:
    """How much the projections (K w)_i / |g_i| differ from a common one, over that; and that one. [B] each"""
    norms = np.sqrt(diagonal(K))
    Kw, magnitude = image(K, w)
    projections, ones = on_range(K, Kw / norms, np.ones_like(w))
    level = (projections * ones).sum(1) / (ones * ones).sum(1)
    largest = np.broadcast_to((magnitude / norms).max(1)[:, None], w.shape)
    return beyond(projections - level[:, None] * ones, np.abs(level)[:, None], largest, K.shape[1]).max(1), level


def imtlg(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """Equal projections on all unit gradients, as far as dependent ones allow, and weights that sum to 1."""
    unequal, _ = equal_projections(K, w)
    total = beyond(w.sum(1) - 1, np.ones(len(w)), np.abs(w).sum(1), K.shape[1])
    return np.maximum(unequal, total)


def config(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """Equal projections on all unit gradients, as far as dependent ones allow; the sum of <out, g_i> is |out|^2."""
    unequal, _ = equal_projections(K, w)
    Kw, magnitude = image(K, w)
    square, total = (w * Kw).sum(1), Kw.sum(1)
    length = beyond(square - total, np.abs(total), (np.abs(w) * magnitude).sum(1) + magnitude.sum(1), K.shape[1])
    return np.maximum(unequal, length)


def alignedmtl(K: Wide, w: Wide, options: Mapping[str, Any]) -> Wide:
    """B K B is s times a projection, for the B whose columns are each task's weights alone; and w is their mean."""
    T = K.shape[1]
    narrow = torch.from_numpy(K.astype(np.float64))
    columns = [gs.weights(narrow, "alignedmtl", pref=[float(i == j) for j in range(T)], **options) for i in range(T)]
    B = wide(torch.stack(columns, dim=2))
    M, size = B @ K @ B, np.abs(B) @ np.abs(K) @ np.abs(B)
    MM, of_square = M @ M, size @ size
    s = diagonal(MM).sum(1) / diagonal(M).sum(1)
    scale = np.broadcast_to((s * s)[:, None, None], M.shape)
    projection = beyond(MM - s[:, None, None] * M, scale, of_square + s[:, None, None] * size, T).max((1, 2))
    symmetric = np.abs(B - np.swapaxes(B, 1, 2)).max((1, 2)) / np.abs(B).max((1, 2))
    mean = np.abs(w - B.mean(2)).max(1) / np.abs(B).max((1, 2))
    return np.maximum(projection, np.maximum(symmetric, mean))


CERTIFICATES: dict[str, tuple[Certificate, tuple[dict[str, Any], ...]]] = {
    "fairgrad": (fairgrad, ({"alpha": 1.0}, {"alpha": 2.0}, {"alpha": 0.5})),
    "nashmtl": (nashmtl, ({"max_norm": 1.0}, {"max_norm": 0.0})),
    "mgda": (mgda, ({},)),
    "cagrad": (cagrad, ({"c": 0.5, "rescale": 0},)),
    "upgrad": (upgrad, ({},)),
    "imtlg": (imtlg, ({},)),
    "config": (config, ({},)),
    "alignedmtl": (alignedmtl, ({"scale_mode": "min"}, {"scale_mode": "median"}, {"scale_mode": "rmse"})),
    "dualproj": (dualproj, ({},)),
    "pcd": (pcd, ({"tau": 0.02, "eps": 0.0}, {"tau": 0.5, "eps": 1e-8})),
}


PRESENT = [
    pytest.param(name, options, id="-".join([name, *(f"{key}={value}" for key, value in options.items())]))
    for name, (_, variants) in CERTIFICATES.items()
    if name in gs.methods()
    for options in variants
]


def vanishing(K: Tensor) -> float:
    """|sum_t w_t g_t|^2 / (sum_t w_t |g_t|)^2 for the w >= 0 that non-negative least squares finds to make it least. K: [T, T]"""
    norms = K.diagonal().sqrt()
    cosines = K / norms[:, None] / norms
    values, vectors = torch.linalg.eigh(cosines)
    rows = torch.cat([values.clamp(min=0.0).sqrt()[:, None] * vectors.T, torch.ones(1, len(K), dtype=K.dtype)])
    onto = np.zeros(len(K) + 1)
    onto[-1] = 1.0
    share, _ = nnls(rows.numpy(), onto)
    w = share.astype(np.longdouble) / share.sum()
    return float(w @ cosines.numpy().astype(np.longdouble) @ w)


def verify(
    K: Tensor, w: Tensor, status: Tensor, certificate: Certificate, options: Mapping[str, Any], known: dict[int, float]
) -> int:
    """How many K [B, T, T] were called stationary, after all answers have passed."""
    T = K.shape[-1]
    assert bool(w.isfinite().all())
    converged, stationary = status[:, 0] == 1, status[:, 1] == 1
    assert bool(converged.all()), f"{int((~converged).sum())} not converged, at first {int((~converged).nonzero()[0])}"
    if not bool(stationary.all()):
        error = certificate(wide(K[~stationary]), wide(w[~stationary]), options)
        assert float(error.max()) <= CERTIFIED, f"{float(error.max()):.3e} at {int((~stationary).nonzero()[int(error.argmax())])}"
    for b in stationary.nonzero()[:, 0].tolist():
        if b not in known:
            known[b] = vanishing(K[b])
        assert known[b] <= 64 * T * ROUNDING, f"called stationary, but no combination is shorter than {known[b]:.3e} at {b}"
    return int(stationary.sum())


def families(tasks: int, count: int, seed: int = 0) -> dict[str, Tensor]:
    """K [count, T, T] of random gradients, by what is hard about them."""
    generator = torch.Generator().manual_seed(1000 * seed + tasks)
    N = 2 * tasks + 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    shared, sign = normal(count, 1, N), torch.where(uniform(0, 1, count, tasks, 1) < 0.5, -1.0, 1.0).double()
    few = max(1, tasks // 2)
    biased = normal(count, tasks, few) + torch.where(uniform(0, 1, count, 1, 1) < 0.5, 3.0, 0.0) * normal(count, 1, few).sign()
    gradients = {
        "benign": normal(count, tasks, N),
        "scaled": normal(count, tasks, N) * 10 ** uniform(-8, 8, count, tasks, 1),
        "opposed": sign * shared + 10 ** uniform(-6, -1, count, 1, 1) * normal(count, tasks, N),
        "mixed signs": normal(count, tasks, N) + uniform(0, 3, count, 1, 1) * sign * shared,
        "deficient": biased @ normal(count, few, N),
    }
    result = {}
    for name, G in gradients.items():
        K = G @ G.mT
        result[name] = K.tril() + K.tril(-1).mT
    return result
