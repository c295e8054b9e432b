"""Balancers: losses -> one scalar loss. They stand beside surgery and combine with it.

A new balancer is one file with a ``@register(...)`` class, and one import line below.
"""

from .base import Balancer
from .constant import ConstantWeights
from .dwa import DynamicWeightAverage
from .epochs import EpochBalancer
from .famo import FAMO
from .gls import GeometricMean
from .gradnorm import GradNorm
from .imtll import IMTLLoss
from .loss_only import LossOnlyBalancer
from .registry import BalancerSpec, balancers, register
from .rlw import RandomLossWeighting
from .stch import SmoothTchebycheff
from .uncertainty import UncertaintyWeighting
from .uwso import SoftmaxUncertainty

__all__ = [
    "FAMO",
    "Balancer",
    "BalancerSpec",
    "ConstantWeights",
    "DynamicWeightAverage",
    "EpochBalancer",
    "GeometricMean",
    "GradNorm",
    "IMTLLoss",
    "LossOnlyBalancer",
    "RandomLossWeighting",
    "SmoothTchebycheff",
    "SoftmaxUncertainty",
    "UncertaintyWeighting",
    "balancers",
    "register",
]
