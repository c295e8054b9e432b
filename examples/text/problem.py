"""Texts as the training loop sees them: data, LSTM, losses, metrics and floors."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from harness.classification import MISSING, ClassificationMetrics, class_metrics, classification_loss, majority, majority_floors
from harness.errors import RunError
from harness.model import MultiTaskModel
from harness.problem import Series
from torch import Tensor

from gradsurgery.balancers.uncertainty import Kind
from text.data import joined, open_splits, separate
from text.data.dataset import TextDataset, classes_of, collate
from text.data.tokens import UNKNOWN, Vocabulary
from text.model import TextNet
from text.pictures import plot_predictions

Batch = dict[str, Tensor]


class TextProblem:
    """See `harness.problem.Problem`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.collate: Callable[[list[Any]], Any] | None = collate
        self.tasks: tuple[str, ...] = tuple(arguments.tasks)
        self.kinds: tuple[Kind, ...] = tuple("classification" for _ in self.tasks)
        self.loss_units = dict.fromkeys(self.tasks, "cross-entropy, nats")
        self.metrics = tuple(metric for task in self.tasks for metric in class_metrics(task, primary="macro_f1"))
        if separate(arguments) and len(self.tasks) > 1 and arguments.form != "parameters":
            raise RunError(
                f"--form {arguments.form}: expected --form parameters with a data set for each task. At the representation, each "
                "task's gradient is zero in the rows of the other's texts: their product is always zero, and surgery would never "
                "see a conflict. The shared parameters are where such tasks meet."
            )
        splits = open_splits(arguments)
        self.classes = {task: names for train, _ in splits for task, names in classes_of(train).items()}
        train, val = joined([train for train, _ in splits]), joined([val for _, val in splits])
        self.name = train.name
        self.vocabulary = Vocabulary(train.texts, size=arguments.vocabulary, min_count=arguments.min_count)
        if not len(self.vocabulary):
            raise RunError(f"--min-count {arguments.min_count}: no word of {train.name} occurs so often; lower it.")
        self.longest = arguments.max_words
        self.train_data = TextDataset(train, self.vocabulary, self.classes, longest=self.longest)
        self.val_data = TextDataset(val, self.vocabulary, self.classes, longest=self.longest)
        self.floors: dict[str, float] = {}
        for task, names in self.classes.items():
            self.floors |= majority_floors(task, len(names), self.train_data.labels[task], self.val_data.labels[task])
        torch.manual_seed(arguments.seed)  # the initial weights are a function of the seed, whatever was drawn before
        self.model: MultiTaskModel = TextNet(
            self.vocabulary.numbers, {task: len(names) for task, names in self.classes.items()},
            embedding=arguments.embedding, width=arguments.width, dropout=arguments.dropout,
        )  # fmt: skip

    def start_epoch(self, epoch: int) -> None:
        """Every epoch has the same texts."""

    def represent(self, batch: Batch) -> Tensor:
        """[B, L] words -> [B, 2·width]"""
        features: Tensor = self.model.trunk(batch["words"], batch["lengths"])
        return features

    def loss(self, task: str, features: Tensor, batch: Batch) -> Tensor | None:
        """Cross-entropy of the task's head over the labelled texts, None without one."""
        return classification_loss(self.model.heads[task](features), batch[task])

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """{"task/metric": value} over the batches."""
        device = next(self.model.parameters()).device
        meters = {task: ClassificationMetrics(task, len(names), device) for task, names in self.classes.items()}
        for batch in batches:
            logits = self.model(batch["words"], batch["lengths"])
            for task, meter in meters.items():
                meter.update(logits[task], batch[task])
        return {name: value for meter in meters.values() for name, value in meter.compute().items()}

    def describe(self) -> str:
        """How many texts, and what of their labels and words is left out."""
        parts = [
            f"{len(self.train_data)} training and {len(self.val_data)} validation texts",
            f"a vocabulary of {len(self.vocabulary)} words",
        ]
        for task, labels in self.val_data.unknown.items():
            if labels:
                named = ", ".join(f"{label!r} {count}×" for label, count in sorted(Counter(labels).items())[:6])
                parts.append(f"{len(labels)} validation labels of {task} left out because training has no such class ({named})")
        return "; ".join(parts)

    def describe_floor(self) -> str:
        """The class that it always answers, task by task."""
        return ", ".join(f"{task} {names[majority(self.train_data.labels[task])]!r}" for task, names in self.classes.items())

    def draw(self, folder: Path) -> None:
        """predictions.png: confusion matrices, and texts with the model's answers."""
        plot_predictions(self.val_data, self.model, self.classes, self.name, folder / "predictions.png")

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        """What the model does not get to see."""
        sentences = []
        for kind, data in (("training", self.train_data), ("validation", self.val_data)):
            without = ", ".join(f"{task} {int((labels == MISSING).sum())}" for task, labels in data.labels.items())
            unknown = float((torch.cat(data.words) == UNKNOWN).float().mean())
            sentences.append(
                f"- {kind}: of {len(data)} texts, so many have no label that counts: {without}; {data.cut} are cut at "
                f"{self.longest} words, and of the words {unknown:.1%} are not in the vocabulary."
            )
        return [("What is left out", sentences)]
