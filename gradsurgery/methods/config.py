"""ConFIG: the direction with the same cosine with every task's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gradsurgery.options import check_choice

from .preference import checked_numbers, given
from .registry import SolverMethod, Step, register

_LENGTHS = ("projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric")  # csrc/weights/config.h


@register(
    "config",
    family="gram",
    paper="Liu et al., ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025 (arXiv:2408.11104)",
    properties=(
        "permutation_equivariant",
        "linear_under_scaling",
        "direction_invariant_to_row_scaling",
        "zero_row_neutral",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class ConFIG(SolverMethod):
    """w = (1ᵀKv / vᵀKv) v with v = D⁻¹ C⁺ pref, C = D⁻¹ K D⁻¹ the cosines: out has equal cosines with all g_t.

    Its length is Σ ⟨g_t, out⟩ / ‖out‖. Without conflict while the gradients are linearly independent; where they are not
    (eigenvalues of C up to some 1e-14, or of the size of a negative one, which shows the errors of K; ``Statistics.status.rank``
    tells), the cosines are as near to ``pref`` as can be, which may leave some of them, and the length, negative, and where nothing
    is left w = 0. Tasks with a zero gradient drop out.

    Options:
        pref: the cosines' proportions, "ones" or a number a task. [T]
        length: "projection", or instead that of the gradients: "minimum", "maximum", or their "harmonic", "arithmetic" or
            "geometric" mean.
    """

    solver = "config"
    pref: Literal["ones"] | Sequence[float] | Tensor = "ones"
    length: Literal["projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric"] = "projection"

    def __post_init__(self) -> None:
        if isinstance(self.pref, str):
            if self.pref != "ones":
                raise ValueError(f"pref: expected 'ones' or one number a task, found {self.pref!r}.")
        else:
            object.__setattr__(self, "pref", checked_numbers("pref", self.pref))
        check_choice("length", self.length, _LENGTHS)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(_LENGTHS.index(self.length))]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return given("pref", self.pref, gram)
