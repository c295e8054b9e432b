"""Methods: K -> w. A new one is a file here and a line below."""

from . import krum, mean, pcgrad, sum
from .registry import Method, MethodSpec, Solution, SolverMethod, Step, build, methods, register

__all__ = [
    "Method",
    "MethodSpec",
    "Solution",
    "SolverMethod",
    "Step",
    "build",
    "krum",
    "mean",
    "methods",
    "pcgrad",
    "register",
    "sum",
]
