"""Gradient surgery for multi-task learning: exact, fused, and one line in the training loop you have.

Per-task gradients come in, one read gives their Gram matrix K, a small exact solver turns K into one weight a task, one more read
combines them, and the trunk gets one gradient.
"""

__version__ = "0.1.0"

from gradsurgery.aggregator import GradientAggregator
from gradsurgery.balancers import (
    FAMO,
    ConstantWeights,
    DynamicWeightAverage,
    GeometricMean,
    GradNorm,
    IMTLLoss,
    RandomLossWeighting,
    SmoothTchebycheff,
    SoftmaxUncertainty,
    UncertaintyWeighting,
    balancers,
)
from gradsurgery.diagnose import diagnose
from gradsurgery.diagnosis import Diagnosis
from gradsurgery.functional import aggregate, combine, gram, weights
from gradsurgery.integrations.optimizer import PCGrad, SurgeryOptimizer
from gradsurgery.methods import methods
from gradsurgery.monitor.monitor import Monitor
from gradsurgery.monitor.sinks import TensorBoardSink
from gradsurgery.ops import build_info

__all__ = [
    "FAMO",
    "ConstantWeights",
    "Diagnosis",
    "DynamicWeightAverage",
    "GeometricMean",
    "GradNorm",
    "GradientAggregator",
    "IMTLLoss",
    "Monitor",
    "PCGrad",
    "RandomLossWeighting",
    "SmoothTchebycheff",
    "SoftmaxUncertainty",
    "SurgeryOptimizer",
    "TensorBoardSink",
    "UncertaintyWeighting",
    "aggregate",
    "balancers",
    "build_info",
    "combine",
    "diagnose",
    "gram",
    "methods",
    "weights",
]
