"""CIFAR-10 as the training loop sees it: data, network, losses, metrics and floors."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from harness.classification import ClassificationMetrics, class_metrics, classification_loss, majority, majority_floors
from harness.model import MultiTaskModel
from harness.problem import Series
from torch import Tensor

from cifar10.data import CLASSES_OF, CIFAR10Dataset, open_images
from cifar10.model import SmallNet
from cifar10.pictures import plot_predictions
from gradsurgery.balancers.uncertainty import Kind

Batch = dict[str, Tensor]


class CIFAR10Problem:
    """See `harness.problem.Problem`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.collate: Callable[[list[Any]], Any] | None = None
        self.tasks: tuple[str, ...] = tuple(arguments.tasks)
        self.kinds: tuple[Kind, ...] = tuple("classification" for _ in self.tasks)
        self.loss_units = dict.fromkeys(self.tasks, "cross-entropy, nats")
        self.metrics = tuple(metric for task in self.tasks for metric in class_metrics(task, primary="accuracy"))
        seed = arguments.seed
        train = open_images(arguments.data, "train", count=arguments.train_count, seed=seed)
        val = open_images(arguments.data, "val", count=arguments.val_count, seed=seed)
        self.name = train.name
        self.train_data = CIFAR10Dataset(train, tasks=self.tasks, train=True, augment=arguments.augment, seed=seed)
        self.val_data = CIFAR10Dataset(val, tasks=self.tasks, train=False, augment=False, seed=seed)
        self.classes = {task: len(CLASSES_OF[task]) for task in self.tasks}
        self.answers: dict[str, str] = {}
        self.floors: dict[str, float] = {}
        for task, classes in self.classes.items():
            labels = self.train_data.labels(task)
            self.answers[task] = CLASSES_OF[task][majority(labels)]
            self.floors |= majority_floors(task, classes, labels, self.val_data.labels(task))
        torch.manual_seed(seed)  # the initial weights are a function of the seed, whatever was drawn before
        self.model: MultiTaskModel = SmallNet(self.classes, width=arguments.width)

    def start_epoch(self, epoch: int) -> None:
        """New turns and moves."""
        self.train_data.set_epoch(epoch)

    def represent(self, batch: Batch) -> Tensor:
        """[B, 3, 32, 32] -> [B, width]"""
        features: Tensor = self.model.trunk(batch["image"])
        return features

    def loss(self, task: str, features: Tensor, batch: Batch) -> Tensor | None:
        """Cross-entropy of the task's head; every image has every label."""
        return classification_loss(self.model.heads[task](features), batch[task])

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """{"task/metric": value} over the batches."""
        device = next(self.model.parameters()).device
        meters = {task: ClassificationMetrics(task, classes, device) for task, classes in self.classes.items()}
        for batch in batches:
            logits = self.model(batch["image"])
            for task, meter in meters.items():
                meter.update(logits[task], batch[task])
        return {name: value for meter in meters.values() for name, value in meter.compute().items()}

    def describe(self) -> str:
        """How many images, and whether they are turned."""
        turned = ", each turned by a random quarter" if "rotation" in self.tasks else ""
        return f"{len(self.train_data)} training and {len(self.val_data)} validation images{turned}"

    def describe_floor(self) -> str:
        """The class that it always answers, task by task."""
        return ", ".join(f"{task} {answer!r}" for task, answer in self.answers.items())

    def draw(self, folder: Path) -> None:
        """predictions.png: validation images with the model's answers."""
        plot_predictions(self.val_data, self.model, self.name, folder / "predictions.png")

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        """What the rotation task asks of the pictures that all tasks share."""
        if "rotation" not in self.tasks or len(self.tasks) < 2:
            return []
        return [("What rotation changes", [
            "All tasks see the turned images: rotation has to tell what the other tasks have to ignore. Their accuracies are "
            "therefore below those on upright images, which --tasks without rotation gives.",
        ])]  # fmt: skip
