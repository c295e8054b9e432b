"""Sign agreement: keep the coordinates on which the tasks agree where to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_choice, check_number

from .coordinatewise import CoordinatewiseMethod
from .registry import register


@register(
    "sign_agreement",
    family="coordinatewise",
    paper="Parascandolo et al., Learning explanations that are hard to vary, ICLR 2021 (arXiv:2009.00329)",
    properties=(
        "permutation_equivariant",
        "linear_under_scaling",
        "non_conflicting",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class SignAgreement(CoordinatewiseMethod):
    """[|mean_t sign(g_t)| >= threshold] · mean_t g_t at each coordinate: the paper's AND-mask.

    Means are over the tasks that have a gradient at the coordinate's position; a zero votes for neither sign. With threshold 1
    no task loses to first order. Where a gradient is infinite or NaN the result is NaN.

    Options:
        threshold: how far the tasks must agree, in [0, 1]: 1 for all of them, 0 for the plain mean.
        reduction: "mean" (the paper), or "sum".
    """

    rule: ClassVar[str] = "sign_agreement"
    threshold: float = 1.0
    reduction: Literal["sum", "mean"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, at_least=0, at_most=1)
        check_choice("reduction", self.reduction, ("sum", "mean"))

    def rule_options(self, grads: TaskGradients) -> list[float]:
        return [float(self.threshold), float(self.reduction == "mean")]
