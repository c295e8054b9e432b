"""Diagnostics that come for free with (K, w)."""

from .statistics import Statistics

__all__ = ["Statistics"]
