"""CAGrad on full vectors: bisection on what the worst task gets, each time with the nearest point that gives it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .nonnegative import nearest


def cagrad(rows: Tensor, c: float = 0.5, rescale: int = 0) -> Tensor:
    """d with |d - g_0| <= c |g_0| of the largest min_i <g_i, d>; g_0 where a shorter change is as good. [N]"""
    G = rows.double().cpu().numpy()
    basis = np.linalg.qr(G.T, mode="reduced")[0]  # few coordinates, for speed
    V = G @ basis
    mean = V.mean(axis=0)
    phi = c * np.linalg.norm(mean)
    low = float((V @ mean).min())
    high = low + float(np.linalg.norm(V, axis=1).max()) * float(phi)
    best = mean
    for _ in range(200):
        mu = (low + high) / 2
        d = nearest(mean, V, np.full(len(V), mu))
        if d is None or np.linalg.norm(d - mean) > phi:
            high = mu
        else:
            low, best = mu, d
        if not low < (low + high) / 2 < high:
            break
    if np.linalg.norm(best - mean) < (1 - 1e-4) * phi:
        best = mean
    factor = (1.0, 1 / (1 + c * c), 1 / (1 + c))[rescale]
    return torch.from_numpy(factor * (best @ basis.T)).to(rows.device)


def certificate(K: Tensor, w: Tensor, c: float = 0.5, rescale: int = 0) -> Tensor:
    """How far d = Gᵀw is from the optimum: u = w - 1/T >= 0, every task with u > 0 gets min_i <g_i, d> and no more, and
    |d - g_0|^2 = c^2 |g_0|^2; each over the size of what it is computed from. K: [B, T, T], w: [B, T] -> [B]"""
    T = w.shape[-1]
    w = w * (1.0, 1 + c * c, 1 + c)[rescale]
    progress, sizes = (K @ w[..., None])[..., 0], (K.abs() @ w[..., None])[..., 0]
    u = torch.where((w - 1 / T).abs() <= 4 * torch.finfo(K.dtype).eps * w, 0.0, w - 1 / T)
    least, worst = progress.min(-1, keepdim=True)
    gap = torch.where(u > 0, (progress - least) / (sizes + sizes.gather(-1, worst)), 0.0).amax(-1)
    square, size = (u * (K @ u[..., None])[..., 0]).sum(-1), (u.abs() * (K.abs() @ u.abs()[..., None])[..., 0]).sum(-1)
    wanted, wanted_size = c * c * K.sum((-1, -2)) / T**2, c * c * K.abs().sum((-1, -2)) / T**2
    apart = (square - wanted).abs() / (size + wanted_size)
    return torch.stack([gap, apart, -u.amin(-1) / w.amax(-1)]).amax(0)
