"""What UPGrad and DualProj share: a preference, and how the quadratic program is regularised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradsurgery.options import check_number

from .preference import checked_numbers, given
from .registry import SolverMethod, Step, present_count


@dataclass(frozen=True)
class DualConeMethod(SolverMethod):
    """w >= p that minimises wᵀKw, of a preference p or of its parts; see the methods for what their options mean."""

    pref: Sequence[float] | Tensor | None = None
    reg_eps: float = 0.0
    norm_eps: float = 0.0

    def __post_init__(self) -> None:
        if self.pref is not None:
            object.__setattr__(self, "pref", checked_numbers("pref", self.pref, at_least=0))
        check_number("reg_eps", self.reg_eps, at_least=0)
        check_number("norm_eps", self.norm_eps, at_least=0)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [1.0 / present_count(tasks, step), float(self.norm_eps), float(self.reg_eps)]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return given("pref", self.pref, gram)
