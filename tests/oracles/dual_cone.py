"""UPGrad and DualProj on full vectors: projections on the dual cone by Moreau's decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .nonnegative import coefficients


def projection(vector: Tensor, rows: Tensor) -> Tensor:
    """The nearest x with <g_i, x> >= 0 for every row g_i: the vector less its projection on the cone of -g_i. [N]"""
    G = rows.double().cpu()
    z = torch.from_numpy(coefficients(G.T.numpy(), -vector.double().cpu().numpy()))
    return (vector.double().cpu() + z @ G).to(rows.device)


def upgrad(rows: Tensor, pref: Sequence[float] | None = None) -> Tensor:
    """Sum of the projections of p_i g_i. [N]"""
    G = rows.double()
    preferences = [1 / len(G)] * len(G) if pref is None else pref
    return torch.stack([p * projection(g, G) for p, g in zip(preferences, G, strict=True)]).sum(0)


def dualproj(rows: Tensor, pref: Sequence[float] | None = None) -> Tensor:
    """The projection of sum_i p_i g_i. [N]"""
    G = rows.double()
    preferences = [1 / len(G)] * len(G) if pref is None else pref
    return projection(torch.tensor(preferences, dtype=torch.float64, device=G.device) @ G, G)


def certificate(K: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """How far Gᵀw is from the projection of Gᵀu: w >= u, Kw >= 0, and Kw = 0 where w > u, each over the size of what it is computed
    from. K: [B, T, T], w: [B, T], u: [T] or [B, T] -> [B]"""
    progress, sizes = (K @ w[..., None])[..., 0], (K.abs() @ w[..., None])[..., 0].clamp_min(torch.finfo(K.dtype).tiny)
    relative, moved = progress / sizes, w - u
    complementary = (moved * progress.abs()).sum(-1) / (w * sizes).sum(-1)
    return torch.stack([(-relative).amax(-1), (-moved).amax(-1), complementary]).amax(0)
