"""Metrics of the three tasks over valid pixels, pooled over the whole data set unless said otherwise."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.regression import MeanAbsoluteError, MeanAbsolutePercentageError, MeanSquaredError

from nyuv2.data.sample import IGNORE

THRESHOLDS = (11.25, 22.5, 30.0)  # degrees
NAMES = {
    "segmentation": ("mean_iou", "pixel_accuracy"),
    "depth": ("absolute_error_m", "relative_error", "rmse_m", "scale_invariant_log_error"),
    "normal": ("mean_angle_deg", "median_angle_deg", *(f"within_{threshold:g}_deg" for threshold in THRESHOLDS)),
}
# The metric that stands for its task, and what it has to be subtracted from to be an error.
PRIMARY = {"segmentation": ("pixel_accuracy", 1.0), "depth": ("absolute_error_m", 0.0), "normal": ("mean_angle_deg", 0.0)}
HIGHER_IS_BETTER = {"mean_iou", "pixel_accuracy", *(name for name in NAMES["normal"] if name.startswith("within"))}


class ScaleInvariantLogError(Metric):
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
        """prediction > 0, target [B, 1, H, W] in metres; target 0 where invalid. Images without valid pixels do not count."""
        for predicted, true in zip(prediction, target, strict=True):
            valid = true > 0
            if valid.any():
                difference = predicted[valid].double().log() - true[valid].double().log()
                self.total += difference.var(correction=0).sqrt()
                self.images += 1

    def compute(self) -> Tensor:
        return self.total / self.images


class AngularError(Metric):
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
        """prediction, target [B, 3, H, W] unit vectors; target 0,0,0 where invalid."""
        valid = target.abs().sum(1) > 0
        cosine = (prediction.double() * target.double()).sum(1)[valid]
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        self.total += angle.sum()
        self.within += torch.stack([(angle < threshold).sum() for threshold in THRESHOLDS])
        bin_of = (angle * (self.bins / 180)).long().clamp(max=self.bins - 1)
        self.histogram += torch.bincount(bin_of, minlength=self.bins)

    def compute(self) -> dict[str, Tensor]:
        count = self.histogram.sum()
        median_bin = torch.searchsorted(self.histogram.cumsum(0), (count + 1) // 2)
        values = [self.total / count, (median_bin + 0.5) * 180 / self.bins, *(self.within / count)]
        return dict(zip(NAMES["normal"], values, strict=True))


class TaskMetrics:
    """The metrics of one task, by name; `update` leaves invalid pixels out, `compute` is empty before any valid pixel was seen."""

    def __init__(self, task: str, classes: int, device: torch.device) -> None:
        self.task = task
        self.seen = False
        self.metrics = {name: metric.to(device) for name, metric in _build(task, classes).items()}

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Prediction as the task's head gives it, target as the data set gives it."""
        prediction = prediction.float()
        if self.task == "segmentation":
            valid = target != IGNORE
            prediction = prediction.argmax(1)
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
        if self.seen:
            for name, metric in self.metrics.items():
                value = metric.compute()
                values |= value if isinstance(value, dict) else {name: value}
        return {f"{self.task}/{name}": float(value) for name, value in values.items()}


def _build(task: str, classes: int) -> dict[str, Metric]:
    if task == "segmentation":  # mean over the classes that occur in prediction or target
        metrics: Sequence[Metric] = (
            MulticlassJaccardIndex(classes, average="macro", validate_args=False),
            MulticlassAccuracy(classes, average="micro", validate_args=False),
        )
    elif task == "depth":
        metrics = (
            MeanAbsoluteError(), MeanAbsolutePercentageError(), MeanSquaredError(squared=False), ScaleInvariantLogError(),
        )  # fmt: skip
    else:
        return {"angles": AngularError()}
    return dict(zip(NAMES[task], metrics, strict=True))


def metric_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Every "task/metric" of the tasks."""
    return tuple(f"{task}/{name}" for task in tasks for name in NAMES[task])


def score(metrics: dict[str, float], floors: dict[str, float], tasks: Sequence[str]) -> float:
    """Mean over tasks of 1 − error / floor's error, by each task's primary metric: 0 is no better than the floor, 1 is perfect.

    Tasks without a value are left out; NaN when none has one.
    """
    gains = []
    for task in tasks:
        name, perfect = PRIMARY[task]
        key = f"{task}/{name}"
        if key in metrics and key in floors:
            gains.append(1 - abs(perfect - metrics[key]) / abs(perfect - floors[key]))
    return sum(gains) / len(gains) if gains else float("nan")
