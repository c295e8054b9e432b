"""Metrics of the tasks over valid pixels, pooled over the whole data set unless said otherwise."""

from collections.abc import Sequence

import torch
import torchmetrics
from harness.metric import Metric
from harness.processes import anywhere
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.regression import MeanAbsoluteError, MeanAbsolutePercentageError, MeanSquaredError

from nyuv2.data.sample import IGNORE, INDOORS, DepthScale

THRESHOLDS = (11.25, 22.5, 30.0)  # degrees


def depth_metrics(unit: str) -> tuple[Metric, ...]:
    """Those of depth maps in `unit`, which is part of the names of the errors that have it."""
    name, shown = (f"_{unit}", f" {unit}") if unit else ("", "")
    return (
        Metric(f"depth/absolute_error{name}", unit=shown, primary=True),
        Metric("depth/relative_error"),
        Metric(f"depth/rmse{name}", unit=shown),
        Metric("depth/scale_invariant_log_error"),
    )


METRICS = {
    "segmentation": (
        Metric("segmentation/mean_iou", best=1),
        Metric("segmentation/pixel_accuracy", best=1, primary=True),
    ),
    "depth": depth_metrics("m"),
    "normal": (
        Metric("normal/mean_angle_deg", unit="°", primary=True),
        Metric("normal/median_angle_deg", unit="°"),
        *(Metric(f"normal/within_{threshold:g}_deg", best=1) for threshold in THRESHOLDS),
    ),
    "instance": (Metric("instance/absolute_error_px", unit=" px", primary=True),),
}


def metrics_of(task: str, scale: DepthScale) -> tuple[Metric, ...]:
    """The metrics of a task on data whose depth has `scale`."""
    return depth_metrics(scale.unit) if task == "depth" else METRICS[task]


class ScaleInvariantLogError(torchmetrics.Metric):
    """√(mean d² − (mean d)²), d = log prediction − log target over an image's valid pixels; the mean over images.

    Eigen, Puhrsch & Fergus (2014), their scale-invariant error with λ = 1: unchanged when a prediction is scaled by a constant.
    """

    total: Tensor
    images: Tensor
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction > 0, target [B, 1, H, W]; target 0 where invalid. Images without valid pixels do not count."""
        for predicted, true in zip(prediction, target, strict=True):
            valid = true > 0
            if valid.any():
                difference = predicted[valid].double().log() - true[valid].double().log()
                self.total += difference.var(correction=0).sqrt()
                self.images += 1

    def compute(self) -> Tensor:
        return self.total / self.images


class AngularError(torchmetrics.Metric):
    """Angles between unit vectors in degrees: mean, median, and the shares within 11.25, 22.5 and 30 degrees.

    Keeps sums and a histogram of `bins` bins instead of every angle: mean and shares are exact, the median to 180 / `bins`
    degrees.
    """

    total: Tensor
    within: Tensor
    histogram: Tensor
    higher_is_better = False

    def __init__(self, bins: int = 18_000) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(THRESHOLDS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction, target [B, 3, H, W] unit vectors; target 0,0,0 where invalid. In the median, NaN counts as 180°."""
        valid = target.abs().sum(1) > 0
        cosine = (prediction.double() * target.double()).sum(1)[valid]
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        self.total += angle.sum()
        self.within += torch.stack([(angle < threshold).sum() for threshold in THRESHOLDS])
        bin_of = (angle.nan_to_num(nan=180.0) * (self.bins / 180)).long().clamp(max=self.bins - 1)
        self.histogram += torch.bincount(bin_of, minlength=self.bins)

    def compute(self) -> dict[str, Tensor]:
        count = self.histogram.sum()
        median_bin = torch.searchsorted(self.histogram.cumsum(0), (count + 1) // 2)
        values = [self.total / count, (median_bin + 0.5) * 180 / self.bins, *(self.within / count)]
        return dict(zip((metric.name for metric in METRICS["normal"]), values, strict=True))


class TaskMetrics:
    """The metrics of one task, by name; `update` leaves invalid pixels out, `compute` is empty before any valid pixel was seen."""

    def __init__(self, task: str, classes: int, device: torch.device, scale: DepthScale = INDOORS) -> None:
        self.task = task
        self.seen = False
        self.metrics = {name: metric.to(device) for name, metric in _build(task, classes, scale).items()}

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Prediction as the task's head gives it, target as the data set gives it."""
        prediction = prediction.float()
        if self.task == "segmentation":
            valid = target != IGNORE
            prediction = prediction.argmax(1)
        elif self.task == "instance":
            valid = target.isfinite()
        else:
            valid = target.abs().sum(1, keepdim=True) > 0
        if not valid.any():
            return
        self.seen = True
        for metric in self.metrics.values():
            if isinstance(metric, (ScaleInvariantLogError, AngularError)):  # these mask for themselves, image by image
                metric.update(prediction, target)
            else:
                metric.update(prediction[valid], target[valid])

    def compute(self) -> dict[str, float]:
        """{"task/metric": value}."""
        values: dict[str, Tensor] = {}
        if anywhere(self.seen):
            for name, metric in self.metrics.items():
                value = metric.compute()
                values |= value if isinstance(value, dict) else {name: value}
        return {name: float(value) for name, value in values.items()}


def _build(task: str, classes: int, scale: DepthScale) -> dict[str, torchmetrics.Metric]:
    if task == "segmentation":  # mean over the classes that occur in prediction or target
        metrics: Sequence[torchmetrics.Metric] = (
            MulticlassJaccardIndex(classes, average="macro", validate_args=False),
            MulticlassAccuracy(classes, average="micro", validate_args=False),
        )
    elif task == "depth":
        metrics = (
            MeanAbsoluteError(), MeanAbsolutePercentageError(), MeanSquaredError(squared=False), ScaleInvariantLogError(),
        )  # fmt: skip
    elif task == "instance":  # over both coordinates
        metrics = (MeanAbsoluteError(),)
    else:
        return {"angles": AngularError()}
    return dict(zip((metric.name for metric in metrics_of(task, scale)), metrics, strict=True))
