"""Methods: K -> w. A new one is a file here and a line below."""

from . import fairgrad, graddrop, gradvac, krum, mean, median, nashmtl, pcgrad, sign_agreement, sum, trimmed_mean
from .registry import Method, MethodSpec, Solution, SolverMethod, Step, build, methods, register

__all__ = [
    "Method",
    "MethodSpec",
    "Solution",
    "SolverMethod",
    "Step",
    "build",
    "fairgrad",
    "graddrop",
    "gradvac",
    "krum",
    "mean",
    "median",
    "methods",
    "nashmtl",
    "pcgrad",
    "register",
    "sign_agreement",
    "sum",
    "trimmed_mean",
]
