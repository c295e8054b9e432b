"""The tasks' losses: over valid pixels alone; without a valid pixel the task is absent and its loss is None.

Of several processes each has its part of the batch: what is counted, averaged or compared is so over all of them, and the mean of
their losses is the batch's. All are computed in float32 or wider, whatever the prediction's dtype. What a prediction says where its
target is invalid changes neither a loss nor a gradient, NaN and infinity included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from harness.errors import RunError
from harness.precision import at_least_float32
from harness.processes import average, largest
from torch import Tensor

from gradsurgery.balancers.uncertainty import Kind
from nyuv2.data.sample import IGNORE


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor | None:
    """Mean of −log softmax(logits)[target] over labelled pixels. logits [B, C, H, W], target int64 [B, H, W] with IGNORE."""
    labelled = target != IGNORE
    count = average(labelled.sum())
    if not count:
        return None
    # One row a pixel: the two-dimensional kernel is not deterministic on CUDA, the one for rows is.
    rows = at_least_float32(logits).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])  # [B·H·W, C]
    rows = rows.where(labelled.reshape(-1, 1), 0.0)
    return F.cross_entropy(rows, target.reshape(-1), ignore_index=IGNORE, reduction="sum") / count


def l1_depth(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of |prediction − target| in metres over pixels with target > 0. Both [B, 1, H, W]."""
    valid = target > 0
    count = average(valid.sum())
    if not count:
        return None
    return _error(prediction, target, valid).abs().sum() / count


def berhu_depth(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean over pixels with target > 0 of B(e), e = prediction − target in metres. Both [B, 1, H, W].

    B(e) = |e| where |e| ≤ c, (e² + c²) / (2c) beyond; c = max |e| / 5 over the valid pixels of the batch, a constant of the step
    (no gradient flows through it). Continuous, and once differentiable, at c.

    Laina et al., Deeper Depth Prediction with Fully Convolutional Residual Networks, 3DV 2016.
    """
    valid = target > 0
    count = average(valid.sum())
    if not count:
        return None
    error = _error(prediction, target, valid).abs()
    c = (largest(error.max()) / 5).clamp(min=torch.finfo(error.dtype).tiny)  # c = 0 where every error is 0
    return torch.where(error <= c, error, (error.square() + c.square()) / (2 * c)).sum() / count


def silog_depth(prediction: Tensor, target: Tensor, lam: float = 0.85) -> Tensor | None:
    """√(mean d² − λ (mean d)²), d = log prediction − log target over the batch's pixels with target > 0. Both [B, 1, H, W].

    Eigen, Puhrsch & Fergus, NeurIPS 2014, whose loss has no root, λ = 0.5, and a sum for each image; this is the form that the
    field trains since BTS (Lee et al. 2019): with the root, λ = 0.85, over the batch. Their factor 10 is left to --loss-weights.
    Computed as √(var d + (1 − λ) (mean d)²); the gradient of a perfect prediction is 0.
    """
    valid = target > 0
    count = average(valid.sum())
    if not count:
        return None
    # A softplus can underflow to 0, whose logarithm is infinite.
    positive = at_least_float32(prediction).where(valid, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    d = positive.log() - target.where(valid, 1.0).log()
    mean = average(d.sum()) / count
    variance = average((d - mean).where(valid, 0.0).square().sum()) / count
    square = variance + (1 - lam) * mean.square()
    return torch.where(square == 0, 1.0, square).sqrt() * (square != 0)  # NaN stays NaN


def cosine_normal(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of 1 − ⟨prediction, target⟩ over pixels with a normal. Both [B, 3, H, W], unit vectors; target 0 where invalid."""
    valid = target.abs().sum(1) > 0  # [B, H, W]
    count = average(valid.sum())
    if not count:
        return None
    cosine = (at_least_float32(prediction).where(valid[:, None], 0.0) * target).sum(1)
    return ((1 - cosine) * valid).sum() / count


def l1_normal(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of |prediction − target| over the three components of pixels with a normal. Both [B, 3, H, W]; target 0: invalid."""
    valid = target.abs().sum(1, keepdim=True) > 0  # [B, 1, H, W]
    count = average(valid.sum())
    if not count:
        return None
    return _error(prediction, target, valid).abs().sum() / (3 * count)


def l1_offset(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of |prediction − target| in pixels over both coordinates of the pixels in instances. Both [B, 2, H, W]; NaN in none."""
    valid = target.isfinite()
    count = average(valid.sum())
    if not count:
        return None
    return _error(prediction, target.nan_to_num(), valid).abs().sum() / count


def _error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """prediction − target, 0 where invalid: selected before any arithmetic, as 0 · NaN would be NaN."""
    return at_least_float32(prediction).where(valid, target) - target


@dataclass(frozen=True)
class Objective:
    """A task's loss, what it measures, and a fixed weight on it."""

    loss: Callable[[Tensor, Tensor], Tensor | None]
    unit: str
    weight: float = 1.0
    in_depth_unit: bool = False  # it is measured as the data measures depth

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        """weight · loss, None when the task is absent."""
        loss = self.loss(prediction, target)
        return loss if loss is None or self.weight == 1 else self.weight * loss

    @property
    def label(self) -> str:
        """The unit, with the weight where there is one."""
        return self.unit if self.weight == 1 else f"{self.weight:g} × {self.unit}"


KINDS: dict[str, Kind] = {"segmentation": "classification", "depth": "regression", "normal": "regression", "instance": "regression"}
OBJECTIVES: dict[str, dict[str, Objective]] = {  # task -> name -> loss; the first is what a task has unless another is named
    "segmentation": {"cross_entropy": Objective(cross_entropy, "cross-entropy, nats")},
    "depth": {
        "l1": Objective(l1_depth, "L1", in_depth_unit=True),
        "berhu": Objective(berhu_depth, "berHu", in_depth_unit=True),
        "silog": Objective(silog_depth, "scale-invariant log"),
    },
    "normal": {"cosine": Objective(cosine_normal, "1 − cosine"), "l1": Objective(l1_normal, "L1")},
    "instance": {"l1": Objective(l1_offset, "L1, px")},
}


def choose_objectives(
    tasks: Sequence[str], names: Mapping[str, str], weights: Sequence[tuple[str, float]] = (), *, depth_unit: str = "m"
) -> dict[str, Objective]:
    """The loss of each task: by its name in `names`, times its weight in `weights`, before any balancer.

    `depth_unit` is the data's, "" where it has none.

    Raises:
        RunError: a weight for a task that is not trained, or twice for one.
    """
    given = [task for task, _ in weights]
    if wrong := [task for task in given if task not in tasks or given.count(task) > 1]:
        raise RunError(f"--loss-weights {wrong[0]}: expected each of {', '.join(tasks)} at most once, found {', '.join(given)}.")
    chosen = {task: OBJECTIVES[task][names[task]] if task in names else next(iter(OBJECTIVES[task].values())) for task in tasks}
    return {
        task: replace(
            objective,
            weight=dict(weights).get(task, 1.0),
            unit=f"{objective.unit}, {depth_unit}" if objective.in_depth_unit and depth_unit else objective.unit,
        )
        for task, objective in chosen.items()
    }
