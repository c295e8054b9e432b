"""Sum and mean of full vectors in float64."""

from __future__ import annotations

from torch import Tensor


def total(rows: Tensor) -> Tensor:
    """sum_t g_t. [N]"""
    return rows.double().sum(0)


def mean(rows: Tensor) -> Tensor:
    """sum_t g_t / T. [N]"""
    return total(rows) / len(rows)
