"""Several processes that make one step: who takes part, who reduces what, and when."""

from .ranks import Parts, Ranks, SyncMode, Whole, checked_ranks

__all__ = ["Parts", "Ranks", "SyncMode", "Whole", "checked_ranks"]
