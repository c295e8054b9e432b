"""Several processes that make one step: who takes part, who reduces what, and when."""

from .averaging import OfAllRanks, mean_, mean_losses
from .ranks import Parts, Ranks, SyncMode, Whole, checked_ranks, several_processes

__all__ = ["OfAllRanks", "Parts", "Ranks", "SyncMode", "Whole", "checked_ranks", "mean_", "mean_losses", "several_processes"]
