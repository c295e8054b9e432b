"""MGDA on full vectors: the shortest vector of the convex hull as a problem of nonnegative least squares (Wolfe)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .nonnegative import coefficients


def mgda(rows: Tensor, gn: str = "none", losses: Tensor | None = None) -> Tensor:
    """The shortest vector of the hull of the normalised rows; zero where one of them is. [N]"""
    G = rows.double().cpu()
    norms = G.norm(dim=1)
    if not bool((norms > 0).all()):
        return torch.zeros_like(G[0]).to(rows.device)
    if gn in ("l2", "loss+"):
        G = G / norms[:, None]
    if gn in ("loss", "loss+"):
        assert losses is not None
        G = G / losses.double()[:, None]
    V = G.numpy()
    shortest = np.linalg.norm(V, axis=1).min()  # of the order of the answer, for a well-posed problem
    stacked = np.vstack([V.T / shortest, np.ones(len(V))])
    z = coefficients(stacked, np.append(np.zeros(V.shape[1]), 1.0))
    return torch.from_numpy(z / z.sum() @ V).to(rows.device)


def certificate(K: Tensor, w: Tensor, gn: str = "none", losses: Tensor | None = None) -> Tensor:
    """How far w is from the minimum: wᵀKw - min_i (Kw)_i of the normalised gradients, over the sizes of what that is computed from;
    and how far the simplex. K: [B, T, T], w: [B, T] -> [B]"""
    gamma = torch.ones_like(w)
    if gn in ("l2", "loss+"):
        gamma = K.diagonal(dim1=-2, dim2=-1).sqrt()
    if gn in ("loss", "loss+"):
        assert losses is not None
        gamma = gamma * losses
    K, v = K / gamma[..., :, None] / gamma[..., None, :], w * gamma
    progress, sizes = (K @ v[..., None])[..., 0], (K.abs() @ v[..., None])[..., 0]
    square, size = (v * progress).sum(-1, keepdim=True), (v * sizes).sum(-1, keepdim=True)
    gap = ((square - progress) / (size + sizes)).amax(-1)
    outside = torch.maximum((v.sum(-1) - 1).abs(), -v.amin(-1))
    return torch.maximum(gap, outside)


def vanishing(K: Tensor, w: Tensor) -> Tensor:
    """wᵀKw over the size of its terms: zero to rounding where w combines the gradients to nothing. [B]"""
    square, size = (w * (K @ w[..., None])[..., 0]).sum(-1), (w * (K.abs() @ w[..., None])[..., 0]).sum(-1)
    return square.abs() / size.clamp_min(torch.finfo(K.dtype).tiny)
