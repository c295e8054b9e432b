"""Least squares with nonnegative coefficients on full vectors, by SciPy: what the oracles of the active-set methods are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Array = npt.NDArray[np.float64]


def coefficients(columns: Array, target: Array) -> Array:
    """z >= 0 that minimises |columns z - target|. columns: [N, T] -> [T]"""
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0] = 1.0
    if columns.shape[0] > columns.shape[1] + 1:  # the same problem in as many rows as matter
        columns = np.linalg.qr(np.column_stack([columns, target]), mode="r")
        columns, target = columns[:, :-1], columns[:, -1]
    z, _ = nnls(columns / norms, target, maxiter=1000)
    return np.asarray(z / norms)


def nearest(point: Array, rows: Array, bounds: Array) -> Array | None:
    """The d nearest to a point with rows d >= bounds, or None where there is none (least-distance programming).

    rows: [T, N], bounds: [T] -> [N]
    """
    deficit = bounds - rows @ point
    norms = np.linalg.norm(rows, axis=1)
    if bool((deficit[norms == 0] > 0).any()):
        return None
    rows, deficit = rows[norms > 0] / norms[norms > 0, None], deficit[norms > 0] / norms[norms > 0]
    scale = float(np.abs(deficit).max(initial=0.0))
    if scale == 0:
        return point
    stacked = np.vstack([rows.T, deficit / scale])
    last = np.zeros(len(stacked))
    last[-1] = 1.0
    residual = stacked @ coefficients(stacked, last) - last
    if abs(residual[-1]) < 1e-10:
        return None
    return np.asarray(point - residual[:-1] / residual[-1] * scale)
