"""Products as the training loop sees them: data, Vision Transformer, losses, metrics and floors."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness.errors import RunError
from harness.problem import Series
from harness.processes import average, is_first
from harness.resume_point import find_state
from harness.run_folder import RunFolder
from torch import Tensor

from gradsurgery.balancers.uncertainty import Kind
from multihead.data import NUMBERS, GeneratedProducts, JsonProducts, ProductDataset, Source
from multihead.floors import ConstantAnswer
from multihead.metrics import TaskMetrics, metrics_of
from multihead.model import VIT_B_16, ProductModel, Shape
from multihead.pictures import plot_numbers, plot_predictions
from multihead.targets import Vocabulary, fit_targets, unseen

Batch = dict[str, Tensor]
BINS = 16  # where the command line does not say
PRODUCTS = {"train": 1600, "val": 200}  # how many are generated where the command line does not say


class ProductProblem:
    """See `harness.problem.Problem`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.collate: Callable[[list[Any]], Any] | None = None
        self.tasks: tuple[str, ...] = tuple(arguments.tasks)
        if len(set(self.tasks)) < len(self.tasks):
            raise RunError(f"--tasks {' '.join(self.tasks)}: expected every task once.")
        binned = arguments.numbers == "binned"
        if binned and not set(self.tasks) & set(NUMBERS):
            raise RunError(f"--numbers binned: expected a number among --tasks {' '.join(self.tasks)}; leave --numbers out.")
        if arguments.bins is not None and not binned:
            raise RunError(f"--bins {arguments.bins}: expected --numbers binned beside it; add it, or leave --bins out.")
        train, val = _sources(arguments)
        self.targets = fit_targets(train.labels, self.tasks, numbers=arguments.numbers,
                                   bins=arguments.bins or BINS, where=train.where)  # fmt: skip
        self.unseen = unseen(val.labels, self.targets)
        if self.unseen and is_first():
            print(self._unseen_sentence(), flush=True)
        shape = _shape(arguments)
        self.train_data = ProductDataset(train, self.targets, size=shape.size, augment=arguments.augment, seed=arguments.seed)
        self.val_data = ProductDataset(val, self.targets, size=shape.size, augment=False, seed=arguments.seed)
        self.name, self.unit = train.name, train.unit
        self.kinds: tuple[Kind, ...] = tuple(target.kind for target in self.targets.values())
        self.loss_units = {task: target.loss_unit for task, target in self.targets.items()}
        self.metrics = tuple(m for task, target in self.targets.items() for m in metrics_of(task, target, self.unit))
        self.answer = ConstantAnswer(self.train_data, self.targets)
        self.floors = self.answer.measure(self.val_data)
        torch.manual_seed(arguments.seed)  # the initial weights are a function of the seed, whatever was drawn before
        self.model = ProductModel(shape, self.targets, dropout=arguments.dropout)
        if arguments.pretrained and not (arguments.resume and find_state(RunFolder.existing(arguments.out).last)):
            self.model.trunk.load_imagenet(shape)

    def start_epoch(self, epoch: int) -> None:
        """New augmentations."""
        self.train_data.set_epoch(epoch)

    def represent(self, batch: Batch) -> Tensor:
        """[B, 3, S, S] -> [B, width]"""
        token: Tensor = self.model.trunk(batch["image"])
        return token

    def loss(self, task: str, features: Tensor, batch: Batch) -> Tensor | None:
        """The task's loss over the samples whose label is known, None where none is."""
        known = batch[f"{task}/known"]
        count = average(known.sum())
        if not count:
            return None
        output = self.model.heads[task](features)  # of the whole batch, so that a compiled head sees one shape
        if not known.any():  # on this rank, whose part of the batch adds nothing
            return (output * 0).sum()
        return self.targets[task].loss(output[known], batch[task][known]) * (known.sum() / count)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """{"task/metric": value} over the batches."""
        device = next(self.model.parameters()).device
        meters = {task: TaskMetrics(task, target, device) for task, target in self.targets.items()}
        for batch in batches:
            outputs = self.model(batch["image"])
            for task, meter in meters.items():
                meter.update(outputs[task], batch[task], batch[f"{task}/known"])
        return {name: value for meter in meters.values() for name, value in meter.compute().items()}

    def describe(self) -> str:
        """How many pictures."""
        side = self.model.shape.size
        return f"{len(self.train_data)} training and {len(self.val_data)} validation pictures at {side}×{side}"

    def describe_floor(self) -> str:
        """What the constant answer says."""
        return self.answer.describe()

    def draw(self, folder: Path) -> None:
        """predictions.png and, with numbers among the tasks, numbers.png"""
        plot_predictions(self.model, self.val_data, folder / "predictions.png")
        if any(not isinstance(target, Vocabulary) for target in self.targets.values()):
            plot_numbers(self.model, self.val_data, folder / "numbers.png")

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        """What is known of the labels, how far each task has learned, and the learned variances where there are any."""
        sections = [("Which labels are known", self._label_sentences()), ("How far each task has learned", self._progress(log))]
        if variances := {task: log[f"variance/{task}"] for task in self.tasks if log.get(f"variance/{task}")}:
            sections.append(("Learned variances", [
                "The effective weight is 1/(2σ²) for a regression, 1/σ² for a classification, in the balancer's default form.",
                "",
                *(
                    f"- {task} ({kind}): σ² {_last(variances[task]):.4f}, effective weight {_last(log[f'balance/{task}']):.4f}."
                    for task, kind in zip(self.tasks, self.kinds, strict=True) if task in variances
                ),
            ]))  # fmt: skip
        return sections

    def _label_sentences(self) -> list[str]:
        sentences = []
        for task, target in self.targets.items():
            counts = ", ".join(
                f"{int(data.known(task).sum())} of {len(data)} {word}"
                for data, word in ((self.train_data, "training"), (self.val_data, "validation"))
            )
            classes = f" in {target.outputs} classes" if isinstance(target, Vocabulary) else ""
            sentences.append(f"- {task}: {counts} labels{classes}.")
        if self.unseen:
            sentences += ["", self._unseen_sentence()]
        return sentences

    def _unseen_sentence(self) -> str:
        parts = [f"{_listed(counts)} of {task}" for task, counts in self.unseen.items()]
        return f"Validation labels of classes that training never saw are left out: {'; '.join(parts)}."

    def _progress(self, log: Series) -> list[str]:
        sentences = []
        for task in self.tasks:
            losses = list(log[f"val/{task}/loss"].values())
            if not losses or losses[0] <= 0:
                sentences.append(f"- {task}: no validation loss to compare.")
                continue
            sentences.append(
                f"- {task}: the last validation loss, {losses[-1]:.4f}, is {losses[-1] / losses[0]:.2f} of the first epoch's "
                f"{losses[0]:.4f}; the smallest, {min(losses):.4f}, came in epoch {losses.index(min(losses)) + 1}."
            )
        return sentences


def _sources(arguments: argparse.Namespace) -> tuple[Source, Source]:
    paths = {"--train-json": arguments.train_json, "--val-json": arguments.val_json}
    if all(paths.values()):
        return (
            JsonProducts(arguments.train_json, count=arguments.train_count),
            JsonProducts(arguments.val_json, count=arguments.val_count),
        )
    if any(paths.values()):
        lacking = next(flag for flag, path in paths.items() if path is None)
        raise RunError(
            f"{lacking}: expected a file beside the other one, found none; give both, or neither for generated products."
        )
    counts = {"train": arguments.train_count or PRODUCTS["train"], "val": arguments.val_count or PRODUCTS["val"]}
    return (
        GeneratedProducts(split="train", seed=arguments.seed, count=counts["train"]),
        GeneratedProducts(split="val", seed=arguments.seed, count=counts["val"]),
    )


def _shape(arguments: argparse.Namespace) -> Shape:
    """The trunk that the arguments describe; what --backbone vit_b_16 fixes may not be asked for otherwise."""
    if arguments.backbone == "small":
        if arguments.pretrained:
            raise RunError(
                "--pretrained: there are ImageNet weights for --backbone vit_b_16 only; add it, or leave --pretrained out."
            )
        small = {"patch": 16, "width": 192, "depth": 4, "attention_heads": 3, "stem": "convolutions"}
        given = {name: value for name in small if (value := getattr(arguments, name)) is not None}
        return Shape(size=arguments.size or 64, **{**small, **given})
    for name, value in VIT_B_16.items():
        if getattr(arguments, name) not in (None, value):
            flag = name.replace("_", "-")
            raise RunError(f"--{flag} {getattr(arguments, name)}: --backbone vit_b_16 has {value}; leave --{flag} out.")
    return Shape(size=arguments.size or 224, **VIT_B_16)


def _last(series: Mapping[int, float]) -> float:
    return series[max(series)]


def _listed(counts: Counter[str]) -> str:
    """ "7 (4 × 'a', 3 × 'b')", the three most frequent by name."""
    named = ", ".join(f"{count} × {name!r}" for name, count in counts.most_common(3))
    return f"{counts.total()} ({named}{', …' if len(counts) > 3 else ''})"
