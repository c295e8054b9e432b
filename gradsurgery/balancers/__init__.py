"""Balancers: losses -> one scalar loss. They stand beside surgery and combine with it."""

from .base import Balancer
from .gradnorm import GradNorm
from .uncertainty import UncertaintyWeighting

__all__ = ["Balancer", "GradNorm", "UncertaintyWeighting"]
