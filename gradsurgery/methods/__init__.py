"""Methods: K -> w. A new one is a file here and a line below."""

from . import mean, pcgrad, sum
from .registry import Method, MethodSpec, State, build, methods, register

__all__ = ["Method", "MethodSpec", "State", "build", "mean", "methods", "pcgrad", "register", "sum"]
