"""IMTL-G, ConFIG and Aligned-MTL by singular value decompositions of full vectors in float64, without a Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

RANK = 1e-7  # singular values up to this, relative to the largest, are zeros: the root of 1e-14, for eigenvalues of K


def _units(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, N] and lengths [n] of the gradients that are not zero."""
    G = rows.double()
    d = G.norm(dim=1)
    return G[d > 0] / d[d > 0, None], d[d > 0]


def _impartial(units: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest x whose products with the unit vectors are ``cosines``, and its coefficients over them. [N], [n]"""
    inverse = torch.linalg.pinv(units, rtol=RANK)
    x = inverse @ cosines
    return x, inverse.T @ x


def imtlg(rows: Tensor) -> Tensor:
    """The combination, with weights that sum to 1, of equal projections on all unit gradients. [N]"""
    units, d = _units(rows)
    x, coefficients = _impartial(units, torch.ones_like(d))
    return x / (coefficients / d).sum()


def config(rows: Tensor, pref: Sequence[float] | None = None, length: str = "projection") -> Tensor:
    """The direction of the given (equal) cosines, at a length of choice. [N]"""
    units, d = _units(rows)
    cosines = torch.ones_like(d) if pref is None else torch.tensor(pref, dtype=torch.float64)
    x, _ = _impartial(units, cosines)
    x = x / x.norm()
    lengths = {
        "projection": (d * (units @ x)).sum,
        "minimum": d.min,
        "maximum": d.max,
        "harmonic": lambda: 1 / (1 / d).mean(),
        "arithmetic": d.mean,
        "geometric": lambda: d.prod() ** (1 / len(d)),
    }
    return lengths[length]() * x


def alignedmtl(rows: Tensor, scale_mode: Literal["min", "median", "rmse"] = "min", pref: Sequence[float] | None = None) -> Tensor:
    """The preferred combination of gradients whose singular values have all become sqrt(s). [N]"""
    U, S, Vh = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = S / S[0] > RANK
    s = {"min": S[kept].min(), "median": S[kept].median(), "rmse": S[kept].square().mean().sqrt()}[scale_mode]
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) if pref is None else torch.tensor(pref).double()
    result: Tensor = s * (Vh[kept].T @ (U[:, kept].T @ weights))
    return result


# --- certificates -----------------------------------------------------------------------------------------------------------------
# Of weights w [G, T] for K [G, T, T], without solving anything: relative residuals, each measured by the absolute values of the
# terms that ought to cancel. Zero is the exact answer. ``rank`` [G] is the solver's; below full rank, equations hold on the range
# of C only.


def _projections(K: Tensor, w: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """<out, g_i> / |g_i| on C's range, the same of ones, and the scale of the first. [G, T], [G, T], [G]"""
    d = K.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(d > 0, 1 / d, 0.0)
    values, vectors = torch.linalg.eigh(K * unit[:, :, None] * unit[:, None])
    order = torch.arange(K.shape[-1], 0, -1)  # eigh's values ascend
    vectors = vectors * (order <= rank[:, None])[:, None]
    length = (d * w)[..., None]
    products = (K * unit[:, :, None] @ w[..., None], (d > 0).double()[..., None])
    deficient = (rank < (d > 0).sum(1))[:, None, None]
    on_range = [torch.where(deficient, vectors @ (vectors.mT @ x), x)[..., 0] for x in products]
    terms = (K.abs() * unit[:, :, None] @ w.abs()[..., None])[..., 0].amax(1)
    outside = torch.where(deficient, length - vectors @ (vectors.mT @ length), 0.0).abs().amax((1, 2))
    ascending = torch.cat([values, values[:, -1:]], dim=1)
    last = (K.shape[-1] - rank).long()[:, None]  # the smallest eigenvalue kept; how sure its vector is depends on the next one
    gap = (ascending.gather(1, last) - ascending.gather(1, (last - 1).clamp_min(0)))[:, 0]
    assert bool((outside * gap <= 1e-13 * length.abs().amax((1, 2))).all()), "of all such weights, the shortest"
    return on_range[0], on_range[1], terms


def imtlg_residual(K: Tensor, w: Tensor, rank: Tensor) -> Tensor:
    """Equal projections, and weights that sum to 1. [G]"""
    projections, ones, terms = _projections(K, w, rank)
    level = (projections * ones).sum(1) / ones.square().sum(1)
    unequal = (projections - level[:, None] * ones).abs().amax(1) / terms
    return torch.maximum(unequal, (w.sum(1) - 1).abs() / w.abs().sum(1))


def config_residual(K: Tensor, w: Tensor, rank: Tensor) -> Tensor:
    """Equal projections that are positive, and their sum over the length is the length. [G]"""
    projections, ones, terms = _projections(K, w, rank)
    level = (projections * ones).sum(1) / ones.square().sum(1)
    independent = rank == (K.diagonal(dim1=-2, dim2=-1) > 0).sum(1)
    assert bool((level >= -1e-9 * terms)[independent].all()), "no conflict while the gradients are linearly independent"
    unequal = (projections - level[:, None] * ones).abs().amax(1) / terms
    Kw, absolute = K @ w[..., None], K.abs() @ w.abs()[..., None]
    length = (w[:, None] @ Kw)[:, 0, 0] - Kw.sum((1, 2))
    return torch.maximum(unequal, length.abs() / ((w.abs()[:, None] @ absolute)[:, 0, 0] + absolute.sum((1, 2))))


def alignedmtl_residual(K: Tensor, B: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B K B / s is a projection on as many dimensions as the rank, for some s; B [G, T, T] has the weights of each task alone as
    columns. -> residual, s and the size of the terms that sum to it [G]"""
    M, size = B @ K @ B, B.abs() @ K.abs() @ B.abs()
    s, terms = (x.diagonal(dim1=-2, dim2=-1).sum(-1) / rank for x in (M, size))
    P, size = M / s[:, None, None], size / s[:, None, None]
    idempotent = ((P @ P - P).abs() / (size @ size + size).clamp_min(1e-300)).amax((1, 2))
    symmetric = ((B - B.mT).abs() / (B.abs() + B.mT.abs()).amax((1, 2), keepdim=True)).amax((1, 2))
    return torch.maximum(idempotent, symmetric), s, terms
