"""PCD on full vectors: the nearest point under its constraints by least-distance programming."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .nonnegative import nearest


def pcd(rows: Tensor, tau: float = 0.02, eps: float = 1e-8, primary: int = 0, square_norms: Tensor | None = None) -> Tensor:
    """The constrained direction at the length of the primary gradient; ``square_norms``: the averages, in place of |g_i|^2. [N]"""
    G = rows.double().cpu().numpy()
    squares = (G * G).sum(1) if square_norms is None else square_norms.cpu().numpy()
    V = G / np.sqrt(squares + eps)[:, None]
    length = np.linalg.norm(G[primary])
    others = np.delete(V, primary, axis=0)
    d = nearest(V[primary], others, tau * (others * others).sum(1))
    direction = V[primary] if d is None else d
    norm = np.linalg.norm(direction)
    result = direction * (length / norm if norm > 1e-12 * np.linalg.norm(V[primary]) else 0.0)
    return torch.from_numpy(np.asarray(result)).to(rows.device)


def certificate(K: Tensor, w: Tensor, tau: float = 0.02, eps: float = 1e-8, primary: int = 0) -> Tensor:
    """How far d = Gᵀw is from the optimum of a first step: in units of its primary part, <g_j, d> >= tau s_j |g_j|^2 with equality
    where w_j > 0, w >= 0, and |d| = |g_p|; each over the size of what it is computed from. K: [B, T, T], w: [B, T] -> [B]"""
    squares = K.diagonal(dim1=-2, dim2=-1)
    s = 1 / (squares + eps).sqrt()
    u = w / w[..., primary : primary + 1] * s[..., primary : primary + 1]
    progress, sizes = (K @ u[..., None])[..., 0], (K.abs() @ u[..., None])[..., 0]
    relative = (progress - tau * s * squares) / (sizes + tau * s * squares)
    secondary = torch.arange(w.shape[-1]) != primary
    short = torch.where(secondary, -relative, 0.0).amax(-1)
    slack = torch.where(secondary, u * (progress - tau * s * squares).abs(), 0.0).sum(-1) / (u * sizes).sum(-1)
    square, size = (w * (K @ w[..., None])[..., 0]).sum(-1), (w * (K.abs() @ w[..., None])[..., 0]).sum(-1)
    length = (square - squares[..., primary]).abs() / (size + squares[..., primary])
    return torch.stack([short, slack, length, -u.amin(-1)]).amax(0)
