"""Methods: K -> w. A new one is a file here and a line below."""

from . import fairgrad, gradvac, krum, mean, nashmtl, pcgrad, sum
from .registry import Method, MethodSpec, Solution, SolverMethod, Step, build, methods, register

__all__ = [
    "Method",
    "MethodSpec",
    "Solution",
    "SolverMethod",
    "Step",
    "build",
    "fairgrad",
    "gradvac",
    "krum",
    "mean",
    "methods",
    "nashmtl",
    "pcgrad",
    "register",
    "sum",
]
