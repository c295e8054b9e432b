"""NYUv2 as the training loop sees it: data, model, losses, metrics and floors."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from harness.errors import RunError
from harness.problem import Series
from torch import Tensor
from torch.utils.data import DataLoader

from nyuv2.data import open_dataset
from nyuv2.floors import ConstantAnswer
from nyuv2.metrics import TaskMetrics, metrics_of
from nyuv2.models.builder import build_model
from nyuv2.objectives import KINDS, choose_objectives
from nyuv2.pictures import plot_predictions

Batch = dict[str, Tensor]
ROOMS = {"train": 320, "val": 64}  # how many rooms are generated where the command line does not say


class NYUv2Problem:
    """See `harness.problem.Problem`. Images run in channels-last memory format, which convolutions prefer on CPU and GPU."""

    collate = None

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.tasks = tuple(arguments.tasks)
        self.kinds = tuple(KINDS[task] for task in self.tasks)
        common: dict[str, Any] = {
            "size": tuple(arguments.size), "classes": arguments.classes, "seed": arguments.seed,
        }  # fmt: skip
        rooms = ROOMS if arguments.data == "generated" else dict.fromkeys(ROOMS)
        counts = {"train": arguments.train_count or rooms["train"], "val": arguments.val_count or rooms["val"]}
        train = {"split": "train", "count": counts["train"], **common}
        self.train_data = open_dataset(arguments.data, augment=arguments.augment, **train)
        self.val_data = open_dataset(arguments.data, split="val", count=counts["val"], **common)
        self.info = self.train_data.info
        self.name, self.size = self.info.name, tuple(arguments.size)
        if missing := [task for task in self.tasks if task not in self.info.tasks]:
            raise RunError(
                f"--tasks {' '.join(missing)}: {self.info.name} has no such targets; it has {', '.join(self.info.tasks)}."
            )
        scale = self.info.depth
        losses = {"depth": arguments.depth_loss, "normal": arguments.normal_loss}
        self.objectives = choose_objectives(self.tasks, losses, arguments.loss_weights, depth_unit=scale.unit)
        self.loss_units = {task: objective.label for task, objective in self.objectives.items()}
        self.metrics = tuple(metric for task in self.tasks for metric in metrics_of(task, scale))
        answer = ConstantAnswer(self._plain(open_dataset(arguments.data, **train), arguments), self.tasks, self.classes, scale)
        self.answer, self.floors = answer, answer.measure(self._plain(self.val_data, arguments))
        torch.manual_seed(arguments.seed)  # the initial weights are a function of the seed, whatever was drawn before
        self.model = build_model(
            self.tasks, classes=self.classes, typical_depth=scale.typical, backbone=arguments.backbone, decoder=arguments.decoder,
            channels=arguments.channels, pretrained=arguments.pretrained, freeze_stages=arguments.freeze_stages,
        ).to(memory_format=torch.channels_last)  # fmt: skip
        self.freeze_encoder_epochs, self.freeze_stages = arguments.freeze_encoder_epochs, arguments.freeze_stages

    @property
    def classes(self) -> int:
        return len(self.info.classes)

    @staticmethod
    def _plain(data: Any, arguments: argparse.Namespace) -> Iterable[Batch]:
        return DataLoader(data, arguments.batch_size, num_workers=arguments.workers, generator=torch.Generator())

    def start_epoch(self, epoch: int) -> None:
        """New augmentations; the encoder frozen as a whole, or its first stages alone."""
        self.train_data.set_epoch(epoch)
        trunk = self.model.trunk
        trunk.freeze(len(trunk.encoder.stages) if epoch < self.freeze_encoder_epochs else self.freeze_stages)

    def represent(self, batch: Batch) -> Any:
        """[B, 3, H, W] -> a map, or a pytree of maps, as the decoder has it."""
        return self.model.trunk(batch["image"].to(memory_format=torch.channels_last))

    def loss(self, task: str, features: Any, batch: Batch) -> Tensor | None:
        """The task's loss on its view of the representation, None without a valid pixel."""
        return self.objectives[task](self.model.heads[task](features, batch["image"].shape[-2:]), batch[task])

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """{"task/metric": value} over the batches."""
        device = next(self.model.parameters()).device
        meters = {task: TaskMetrics(task, self.classes, device, self.info.depth) for task in self.tasks}
        for batch in batches:
            predictions = self.model(batch["image"].to(memory_format=torch.channels_last))
            for task, meter in meters.items():
                meter.update(predictions[task], batch[task])
        return {name: value for meter in meters.values() for name, value in meter.compute().items()}

    def describe(self) -> str:
        """How many images, and their size."""
        height, width = self.size
        return f"{len(self.train_data)} training and {len(self.val_data)} validation images at {height}×{width}"

    def describe_floor(self) -> str:
        """The constant answer of every task."""
        normal = ", ".join(f"{value:+.2f}" for value in self.answer.mean_normal.tolist())
        words = {
            "segmentation": f"the class {self.info.classes[self.answer.majority]!r}",
            "depth": f"a depth of {f'{self.answer.median_depth:.2f} {self.info.depth.unit}'.rstrip()} (the median)",
            "normal": f"the normal ({normal}) (the mean)",
            "instance": "no offset (the mean)",
        }
        return ", ".join(words[task] for task in self.tasks)

    def draw(self, folder: Path) -> None:
        """predictions.png: truth and prediction of some validation images."""
        plot_predictions(self.val_data, self.model, self.tasks, folder / "predictions.png")

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        """Nothing beyond what every note says."""
        return []
