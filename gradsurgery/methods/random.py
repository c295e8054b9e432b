"""Random: weights drawn anew in every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .keys import check_seed, first_key, stateless_key
from .preference import presence
from .registry import NO_STEP, Solution, SolverMethod, Step, check_gram, register


@register(
    "random",
    family="scalarization",
    paper="Lin et al., Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning, TMLR 2022",
    properties=("linear_under_scaling", "weights_nonnegative", "weights_sum_to_one", "one_task_identity"),
    degree=1.0,
)
@dataclass(frozen=True)
class Random(SolverMethod):
    """w = softmax(z), z ~ N(0, I), over the tasks present.

    The draws come from a counter, so that ranks, devices and resumed runs agree (across devices to the rounding of logarithm and
    cosine). A task's z does not depend on which others are present.

    Options:
        seed: of the draws of a ``GradientAggregator``, whose state is (seed, step). Without state (``gradsurgery.weights``,
            ``gradsurgery.aggregate``) None draws from torch's default generator; an integer gives the draw of its step 0.
    """

    solver = "random"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def initial_state(self) -> dict[str, Tensor]:
        """The counter (seed, step) behind the draws."""
        return {"key": first_key(self.seed)}

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return presence(step, gram)

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        if "key" not in step.state:
            step = step._replace(state={"key": stateless_key(self.seed, gram.device)})
        return super().solve(gram, step)
