"""Geometric loss strategy: the geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from .loss_only import LossOnlyBalancer
from .registry import register


@register(
    "gls",
    paper="Chennupati et al., MultiNet++, CVPR Workshops 2019 (arXiv:1904.08325)",
    properties=("positive_losses", "permutation_equivariant", "homogeneous", "scale_free"),
)
class GeometricMean(LossOnlyBalancer):
    """(prod_t L_t)^(1/T) = exp(mean_t log L_t), hence w_t = L / (T L_t), over the T tasks present.

    Computed in logarithms: no product over- or underflows. Losses have to be positive: a negative one gives NaN, and zero gives
    a loss of 0 with a gradient of NaN.

    Args:
        tasks: the tasks' names, or their number.
        process_group: as for every ``Balancer``.
    """

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        value = losses.log().mean().exp()
        return value, value.detach() / (len(here) * losses.detach())
