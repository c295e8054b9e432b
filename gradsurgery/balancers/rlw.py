"""Random loss weighting: new random weights at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradsurgery import ops
from gradsurgery.methods.keys import check_seed, first_key
from gradsurgery.methods.preference import beside

from .loss_only import LossOnlyBalancer
from .registry import register


@register(
    "rlw",
    paper="Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022 (arXiv:2111.10603)",
    properties=("random", "homogeneous", "weights_sum_to_one"),
)
class RandomLossWeighting(LossOnlyBalancer):
    """sum_t w_t L_t with w = softmax(u) over the tasks present, u ~ N(0, I) at every call in training.

    The weights sum to 1, as in the paper: the gradient is the mean's size, not the sum's. In eval mode they are their expectation,
    1/T, and nothing is drawn. u is a function of (seed, step, task) by a counter-based generator, the draws of method ``random``: a
    resumed run, another device (to the rounding of logarithm and cosine) and the other ranks draw the same, and torch's random
    state is left alone.

    Args:
        tasks: the tasks' names, or their number.
        seed: of the draws, an integer of 64 bits; None counts as 0, and ranks still draw the same.
        process_group: as for every ``Balancer``.
    """

    _key: Tensor

    def __init__(self, tasks: Sequence[str] | int, *, seed: int | None = 0, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(seed=seed)
        check_seed(seed)
        self.register_buffer("_key", first_key(seed))  # (seed, step)

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        if self._learning:
            T = len(self.tasks)
            K = losses.new_zeros(T, T)  # which random weights do not look at
            present = None if len(here) == T else beside(K, [float(t in here) for t in range(T)])
            drawn, _ = ops.solve(K, "random", [], present, None, None, self._key)
            w = self._taken(drawn, here)
        else:
            w = losses.new_full((len(here),), 1.0 / len(here))
        return (w * losses).sum(), w
