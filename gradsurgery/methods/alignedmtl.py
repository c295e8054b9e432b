"""Aligned-MTL: give the gradients' principal components one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gradsurgery.options import check_choice

from .preference import checked_numbers, given
from .registry import SolverMethod, Step, present_count, register

_SCALES = ("min", "median", "rmse")  # csrc/weights/alignedmtl.h


@register(
    "alignedmtl",
    family="gram",
    paper="Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023",
    properties=("permutation_equivariant", "one_task_identity", "duplicate_invariant_direction"),
    degree=1.0,
)
@dataclass(frozen=True)
class AlignedMTL(SolverMethod):
    """w = √s V Λ^(−½) Vᵀ pref over the eigenvalues of K = V Λ Vᵀ above rounding: ‖Vᵀ-components of G‖ all become √s.

    An eigenvalue up to T 1e-14 of the largest counts as zero, and one of the size of a negative one, which shows the errors of K:
    the result jumps where one crosses that line (``Statistics.status.rank`` tells), and so does that of tasks whose gradients are
    1e7 times shorter than others.

    May conflict with a task, even for T = 2: with gradients of lengths 1 and 10 at 160 degrees the result opposes the first.
    Tasks with a zero gradient get the weight 0, and count in the mean as long as they are present.

    Options:
        scale_mode: s is the smallest eigenvalue ("min"), the median, of two the lower ("median"), or the mean ("rmse", the authors'
            name for it: √s is the root mean square of the singular values).
        pref: the preferences: "mean", 1/T over the tasks present; "sum", ones; or a number a task. [T]
    """

    solver = "alignedmtl"
    scale_mode: Literal["min", "median", "rmse"] = "min"
    pref: Literal["mean", "sum"] | Sequence[float] | Tensor = "mean"

    def __post_init__(self) -> None:
        check_choice("scale_mode", self.scale_mode, _SCALES)
        if isinstance(self.pref, str):
            if self.pref not in ("mean", "sum"):
                raise ValueError(f"pref: expected 'mean', 'sum' or one number a task, found {self.pref!r}.")
        else:
            object.__setattr__(self, "pref", checked_numbers("pref", self.pref))

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(_SCALES.index(self.scale_mode)), 1.0 / present_count(tasks, step) if self.pref == "mean" else 1.0]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return given("pref", self.pref, gram)
