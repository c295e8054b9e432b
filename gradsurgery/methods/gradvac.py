"""GradVac: PCGrad towards the cosines that the tasks have had so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_number

from .orders import Order, arrange, check_order, initial_key
from .registry import NO_STEP, Solution, SolverMethod, Step, check_gram, register


@register(
    "gradvac",
    family="gram",
    paper="Wang et al., Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models, "
    "ICLR 2021 (arXiv:2010.05874)",
    properties=(
        "linear_under_scaling",
        "weights_at_least_one",
        "weights_nonnegative",
        "zero_row_neutral",
        "one_task_identity",
    ),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class GradVac(SolverMethod):
    """g_i ← g_i + a g_j that makes cos(g_i, g_j) = φ_ij wherever it is less, φ_ij its moving average; then Σ g_i.

    With φ = cos(g_i, g_j) before the correction, a = ‖g_i‖ (φ_ij √(1−φ²) − φ √(1−φ_ij²)) / (‖g_j‖ √(1−φ_ij²)), and always
    φ_ij ← (1−β) φ_ij + β φ. The averages start at 0, where this is PCGrad to the bit, as is every call without memory
    (``gradsurgery.weights``, ``gradsurgery.aggregate``). They are per parameter group. Computed in Gram space.

    Tasks with a zero gradient, or absent, neither correct nor are corrected, and leave their averages as they are. As φ_ij -> 1
    the corrections grow without bound; φ_ij = 1 is taken for the nearest number below it.

    Options:
        beta: β in [0, 1], how fast the averages follow; the paper's 0.01 (other implementations take 0.5).
        order: as of ``pcgrad``: "random", "ascending", or an int64 tensor [T, T].
        seed: as of ``pcgrad``, of the random orders.
    """

    solver = "gradvac"
    state_name = "similarity"
    beta: float = 0.01
    order: Order = "random"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("beta", self.beta, at_least=0, at_most=1)
        check_order(self.order, self.seed)

    def initial_state(self) -> dict[str, Tensor]:
        """The counter (seed, step) behind the random orders."""
        return initial_key(self.order, self.seed)

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        """φ [T, T], or [G, T, T] for several groups."""
        shape = (grads.tasks, grads.tasks) if groups == 1 else (groups, grads.tasks, grads.tasks)
        return {"similarity": torch.zeros(shape, dtype=torch.float64, device=grads.device)}

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.beta)]

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        T = gram.shape[-1]
        order, key = arrange(self.order, self.seed, T, gram.device, step.state.get("key"))
        state = step.state.get(self.state_name)
        w, status = ops.solve(gram.contiguous(), self.solver, self.options(T, step), None, state, order, key)
        return Solution(gram, w, status)
