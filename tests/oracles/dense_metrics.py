"""Metrics of dense predictions in float64 NumPy, pixel by pixel as their definitions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pairs = Sequence[tuple[Array, Array]]  # prediction and target of one image each


def segmentation(pairs: Pairs, classes: int, ignore: int) -> dict[str, float]:
    """Prediction: class ids. Mean intersection over union of the classes in prediction or target, and the share of right pixels."""
    confusion = [[0] * classes for _ in range(classes)]
    for prediction, target in pairs:
        for predicted, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if true != ignore:
                confusion[true][predicted] += 1
    total, right, ratios = 0, 0, []
    for k in range(classes):
        row, column = sum(confusion[k]), sum(confusion[j][k] for j in range(classes))
        total, right = total + row, right + confusion[k][k]
        if row + column > 0:
            ratios.append(confusion[k][k] / (row + column - confusion[k][k]))
    if not total:
        return {}
    return {"segmentation/mean_iou": sum(ratios) / len(ratios), "segmentation/pixel_accuracy": right / total}


def depth(pairs: Pairs) -> dict[str, float]:
    """Target 0 where invalid. The logarithmic error is a mean over images."""
    absolute, relative, square, logarithmic = [], [], [], []
    for prediction, target in pairs:
        logs = []
        for predicted, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if true > 0:
                absolute.append(abs(predicted - true))
                relative.append(abs(predicted - true) / true)
                square.append((predicted - true) ** 2)
                logs.append(math.log(predicted) - math.log(true))
        if logs:
            mean = math.fsum(logs) / len(logs)
            logarithmic.append(math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / len(logs)))
    if not absolute:
        return {}
    return {
        "depth/absolute_error_m": _mean(absolute),
        "depth/relative_error": _mean(relative),
        "depth/rmse_m": math.sqrt(_mean(square)),
        "depth/scale_invariant_log_error": _mean(logarithmic),
    }


def normal(pairs: Pairs) -> dict[str, float]:
    """Unit vectors [3, H, W], target 0,0,0 where invalid. Angles by atan2, which is exact near 0 and 180 degrees too."""
    angles = []
    for prediction, target in pairs:
        for predicted, true in zip(prediction.reshape(3, -1).T, target.reshape(3, -1).T, strict=True):
            if true.any():
                p, t = predicted.astype(np.float64), true.astype(np.float64)
                angles.append(math.degrees(math.atan2(float(np.linalg.norm(np.cross(p, t))), float(p @ t))))
    if not angles:
        return {}
    ordered = sorted(angles)
    return {
        "normal/mean_angle_deg": _mean(angles),
        "normal/median_angle_deg": ordered[(len(ordered) + 1) // 2 - 1],  # of two in the middle the smaller
        **{f"normal/within_{limit:g}_deg": _mean([float(angle < limit) for angle in angles]) for limit in (11.25, 22.5, 30)},
    }


def instance(pairs: Pairs) -> dict[str, float]:
    """Offsets [2, H, W], target NaN where there is no instance; over both coordinates."""
    errors = [
        abs(predicted - true)
        for prediction, target in pairs
        for predicted, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True)
        if not math.isnan(true)
    ]
    return {"instance/absolute_error_px": _mean(errors)} if errors else {}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
