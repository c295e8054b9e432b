"""GradDrop: let each coordinate follow one sign, drawn by how much speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_number

from .coordinatewise import CoordinatewiseMethod
from .keys import check_seed, first_key, stateless_key
from .preference import check_count, checked_numbers
from .registry import Step, register


@register(
    "graddrop",
    family="coordinatewise",
    paper="Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, NeurIPS 2020 "
    "(arXiv:2010.06808)",
    properties=("permutation_equivariant", "zero_row_neutral", "one_task_identity", "duplicate_invariant_direction"),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class GradDrop(CoordinatewiseMethod):
    """Σ_t (ℓ_t + (1 − ℓ_t) M_t) g_t, M_t = [P > U and g_t > 0] + [P < U and g_t < 0], P = ½ (1 + Σ g / Σ |g|), at each coordinate.

    U is uniform on (0, 1), one number a coordinate that all tasks share, so that the result is unbiased: E[out] = Σ_t g_t for
    ℓ = 0. Coordinates where all gradients are zero stay zero; where one is infinite or NaN the result is NaN. A coordinate's
    number depends on the seed, the step and its place among all coordinates, in the order of the dimensions, and not on layouts,
    devices or threads. The step is advanced at every call, one with a gradient that is not finite included.

    Options:
        leak: ℓ, how much of what is dropped passes: a number in [0, 1], one a task, or None for none.
        seed: of the numbers U of a ``GradientAggregator``, whose state is (seed, step). Without state (``gradsurgery.aggregate``)
            None draws from torch's default generator; an integer gives the numbers of its step 0.
        uniform: the numbers U themselves, in place of drawn ones: [N] in [0, 1) (checked on the CPU), position after position of
            the result.
    """

    rule: ClassVar[str] = "graddrop"
    leak: float | Sequence[float] | Tensor | None = None
    seed: int | None = None
    uniform: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        leak = self.leak.item() if isinstance(self.leak, Tensor) and self.leak.dim() == 0 else self.leak
        if isinstance(leak, (tuple, list, Tensor)):
            leak = checked_numbers("leak", leak, at_least=0, at_most=1)
        elif leak is not None:
            check_number("leak", leak, at_least=0, at_most=1)
        object.__setattr__(self, "leak", leak)
        if self.uniform is not None:
            if not isinstance(self.uniform, Tensor) or self.uniform.dim() != 1 or not self.uniform.is_floating_point():
                found = self.uniform.shape if isinstance(self.uniform, Tensor) else type(self.uniform).__name__
                raise ValueError(f"uniform: expected a floating tensor [N], found {found}.")
            if self.uniform.device.type == "cpu" and not torch.compiler.is_compiling():  # where a look costs no wait
                outside = self.uniform[~((self.uniform >= 0) & (self.uniform < 1))]
                if len(outside):
                    raise ValueError(f"uniform: expected numbers in [0, 1), found {float(outside[0])}.")
            if self.seed is not None:
                raise ValueError("seed: expected None beside uniform, which replaces what a seed would draw.")

    def initial_state(self) -> dict[str, Tensor]:
        """The counter (seed, step) behind U."""
        return {} if self.uniform is not None else {"key": first_key(self.seed)}

    def rule_options(self, grads: TaskGradients) -> list[float]:
        leaks = self._leaks(grads.tasks)
        if leaks:
            check_count("leak", leaks, grads.tasks)
        return [float(leak) for leak in leaks] if any(leaks) else []

    def random_numbers(self, numel: int, device: torch.device, step: Step) -> tuple[Tensor | None, Tensor | None]:
        if self.uniform is None:
            key = step.state.get("key")
            return None, stateless_key(self.seed, device) if key is None else key
        if self.uniform.shape[0] != numel:
            raise ValueError(f"uniform: expected {numel} numbers, one a coordinate, found {self.uniform.shape[0]}.")
        return self.uniform.to(device, torch.float64).contiguous(), None

    def _leaks(self, tasks: int) -> Sequence[float]:
        if self.leak is None:
            return ()
        return (self.leak,) * tasks if isinstance(self.leak, (int, float)) else self.leak  # type: ignore[return-value]
