"""The tasks' losses: means over valid pixels; without a valid pixel the task is absent and its loss is None.

All are computed in float32 whatever the prediction's dtype.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from gradsurgery.balancers.uncertainty import Kind
from nyuv2.data.sample import IGNORE

KINDS: dict[str, Kind] = {"segmentation": "classification", "depth": "regression", "normal": "regression", "instance": "regression"}
UNITS = {"segmentation": "cross-entropy, nats", "depth": "L1, m", "normal": "1 − cosine", "instance": "L1, px"}


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor | None:
    """Mean of −log softmax(logits)[target] over labelled pixels. logits [B, C, H, W], target int64 [B, H, W] with IGNORE."""
    labelled = target != IGNORE
    if not labelled.any():
        return None
    # One row a pixel: the two-dimensional kernel is not deterministic on CUDA, the one for rows is.
    rows = logits.float().permute(0, 2, 3, 1).reshape(-1, logits.shape[1])  # [B·H·W, C]
    return F.cross_entropy(rows, target.reshape(-1), ignore_index=IGNORE)


def depth_loss(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of |prediction − target| in metres over pixels with target > 0. Both [B, 1, H, W]."""
    valid = target > 0
    if not valid.any():
        return None
    return ((prediction.float() - target).abs() * valid).sum() / valid.sum()


def normal_loss(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of 1 − ⟨prediction, target⟩ over pixels with a normal. Both [B, 3, H, W], unit vectors; target 0 where invalid."""
    valid = target.abs().sum(1) > 0  # [B, H, W]
    if not valid.any():
        return None
    return ((1 - (prediction.float() * target).sum(1)) * valid).sum() / valid.sum()


def instance_loss(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Mean of |prediction − target| in pixels over both coordinates of the pixels in instances. Both [B, 2, H, W]; NaN in none."""
    valid = target.isfinite()
    if not valid.any():
        return None
    return ((prediction.float() - target.nan_to_num()).abs() * valid).sum() / valid.sum()


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "segmentation": segmentation_loss,
    "depth": depth_loss,
    "normal": normal_loss,
    "instance": instance_loss,
}
