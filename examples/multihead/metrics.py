"""Metrics over the samples whose label is known: of classes those of `harness.classification` and top-5 accuracy, of numbers the
absolute error in the label's unit, and of both the loss."""

from __future__ import annotations

import torch
import torchmetrics
from harness.classification import ClassificationMetrics, class_metrics
from harness.metric import Metric
from harness.processes import anywhere
from torch import Tensor
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError

from multihead.targets import Target, Vocabulary

LARGE = 20  # a vocabulary from which on being among the five most probable says something


def metrics_of(task: str, target: Target, unit: str) -> tuple[Metric, ...]:
    """What `TaskMetrics` may return; `unit` is that of the numbers."""
    loss = Metric(f"{task}/loss")
    if not isinstance(target, Vocabulary):
        return Metric(f"{task}/absolute_error", unit=unit, primary=True), loss
    five = (Metric(f"{task}/top_5_accuracy", best=1.0),) if target.outputs >= LARGE else ()
    return *class_metrics(task, primary="accuracy"), *five, loss


class TaskMetrics:
    """The metrics of one task, by name; `update` leaves unknown labels out, `compute` is empty before any known one was seen."""

    def __init__(self, task: str, target: Target, device: torch.device) -> None:
        self.task, self.target = task, target
        self.seen = False
        self.classes = ClassificationMetrics(task, target.outputs, device) if isinstance(target, Vocabulary) else None
        self.metrics: dict[str, torchmetrics.Metric] = {}
        if isinstance(target, Vocabulary):
            if target.outputs >= LARGE:
                self.metrics["top_5_accuracy"] = MulticlassAccuracy(target.outputs, top_k=5, average="micro", validate_args=False)
        else:
            self.metrics["absolute_error"] = MeanAbsoluteError()
        self.metrics["loss"] = MeanMetric()
        for metric in self.metrics.values():
            metric.to(device)

    def update(self, output: Tensor, target: Tensor, known: Tensor) -> None:
        """output [B, outputs] as the head gives it, target [B] and known [B] as the data set gives them."""
        if not known.any():
            return
        self.seen = True
        output, target = output[known].float(), target[known]
        if self.classes is not None:
            self.classes.update(output, target.long())
        answer = self.target.predict(output)
        for name, metric in self.metrics.items():
            if name == "loss":
                metric.update(self.target.loss(output, target), weight=len(target))
            else:
                metric.update(answer, target.long() if isinstance(self.target, Vocabulary) else target)

    def compute(self) -> dict[str, float]:
        """{"task/metric": value}."""
        if not anywhere(self.seen):
            return {}
        values = {} if self.classes is None else self.classes.compute()
        return values | {f"{self.task}/{name}": float(metric.compute()) for name, metric in self.metrics.items()}
