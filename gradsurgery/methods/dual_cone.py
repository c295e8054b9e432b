"""What UPGrad and DualProj share: a preference, and how the quadratic program is regularised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .preference import beside, check_count, checked_numbers
from .registry import SolverMethod, Step, present_count


@dataclass(frozen=True)
class DualConeMethod(SolverMethod):
    """w >= p that minimises wᵀKw, of a preference p or of its parts; see the methods for what their options mean."""

    pref: Sequence[float] | Tensor | None = None
    reg_eps: float = 0.0
    norm_eps: float = 0.0

    def __post_init__(self) -> None:
        if self.pref is not None:
            object.__setattr__(self, "pref", checked_numbers(self.pref, "pref"))
        for name in ("reg_eps", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, found {value!r}.")

    def options(self, tasks: int, step: Step) -> list[float]:
        return [1.0 / present_count(tasks, step), float(self.norm_eps), float(self.reg_eps)]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        if self.pref is None:
            return None
        check_count(self.pref, "pref", gram.shape[-1])
        return beside(gram, self.pref)  # type: ignore[arg-type]  # a tuple of numbers since __post_init__
