"""Diagnostics that come for free with (K, w)."""

from .statistics import SolverStatus, Statistics

__all__ = ["SolverStatus", "Statistics"]
