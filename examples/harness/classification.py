"""Classification tasks, as trainers share them: loss, accuracy and macro F1 over the samples that have a label, and their floor.

Logits are [B, C]; targets are int64 [B], a class in 0..C-1, or MISSING where the sample has no label for the task.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from harness.metric import Metric
from harness.precision import at_least_float32
from harness.processes import anywhere, average

MISSING = -1
NAMES = ("accuracy", "macro_f1")


def class_metrics(task: str, *, primary: str) -> tuple[Metric, ...]:
    """What `ClassificationMetrics` measures of a task; `primary` is the one of NAMES that stands for it."""
    return tuple(Metric(f"{task}/{name}", best=1, primary=name == primary) for name in NAMES)


def classification_loss(logits: Tensor, target: Tensor) -> Tensor | None:
    """Mean of −log softmax(logits)[target] over labelled samples, in float32; None without one on any rank.

    Samples without a label are cut out, so that whatever their logits are, they get a gradient of exactly zero.
    """
    labelled = target != MISSING
    count = average(labelled.sum())
    if not count:
        return None
    return F.cross_entropy(at_least_float32(logits[labelled]), target[labelled], reduction="sum") / count


class ClassificationMetrics:
    """Accuracy, and F1 averaged over the classes that occur in prediction or target, by task, pooled over batches.

    Args:
        task: the name before the slash.
        classes: the number of classes, C.
        device: where logits and targets lie.
    """

    def __init__(self, task: str, classes: int, device: torch.device) -> None:
        self.task = task
        self.seen = False
        metrics = (
            MulticlassAccuracy(classes, average="micro", validate_args=False),
            MulticlassF1Score(classes, average="macro", validate_args=False),
        )
        self.metrics = {name: metric.to(device) for name, metric in zip(NAMES, metrics, strict=True)}

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count the labelled samples of a batch."""
        labelled = target != MISSING
        if not labelled.any():
            return
        self.seen = True
        for metric in self.metrics.values():
            metric.update(logits[labelled].argmax(1), target[labelled])

    def compute(self) -> dict[str, float]:
        """{"task/metric": value}; empty when no sample had a label."""
        if not anywhere(self.seen):
            return {}
        return {f"{self.task}/{name}": float(metric.compute()) for name, metric in self.metrics.items()}


def majority(labels: Tensor) -> int:
    """The most frequent class of labels [N], the lowest of several; labels must hold one that is not MISSING."""
    return int(torch.bincount(labels[labels != MISSING]).argmax())


def majority_floors(task: str, classes: int, train: Tensor, val: Tensor) -> dict[str, float]:
    """What answering every sample of `val` [M] with the majority class of `train` [N] scores, by metric."""
    meter = ClassificationMetrics(task, classes, val.device)
    answer = F.one_hot(torch.tensor(majority(train), device=val.device), classes)
    meter.update(answer.expand(len(val), classes), val)
    return meter.compute()
