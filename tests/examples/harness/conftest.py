"""A problem of a few numbers, small enough to train in every test."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.arguments import add_arguments, open_run
from harness.metric import Metric
from harness.model import MultiTaskModel
from harness.problem import Series
from harness.reproducibility import seed_everything
from harness.training import Training
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from gradsurgery.balancers.uncertainty import Kind


class ToyProblem:
    """y = sign of a plane (classification) and another plane (regression); one target of `absent` is NaN throughout."""

    tasks: tuple[str, ...] = ("side", "height")
    kinds: tuple[Kind, ...] = ("classification", "regression")
    name = "points"
    metrics = (Metric("side/error"), Metric("height/error", primary=True))
    collate = None

    def __init__(self, *, samples: int = 16, absent: str | None = None, after_step: Callable[[int], None] | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        points = torch.randn(samples, 3, generator=generator)
        self.train_data: Dataset[Any] = TensorDataset(points, (points[:, :1] > 0).float(), points.sum(1, keepdim=True))
        self.val_data = self.train_data
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.25))
        self.model = MultiTaskModel(trunk, {"side": nn.Linear(8, 1), "height": nn.Linear(8, 1)})
        self.floors = {"side/error": 1.0, "height/error": 4.0}
        self.loss_units = {"side": "nats", "height": "squared"}
        self.absent, self.after_step, self.steps, self.passes = absent, after_step, 0, 0

    def start_epoch(self, epoch: int) -> None:
        pass

    def represent(self, batch: Any) -> Tensor:
        self.passes += 1
        self.steps += torch.is_grad_enabled()
        if self.after_step is not None and torch.is_grad_enabled():
            self.after_step(self.steps)
        features: Tensor = self.model.trunk(batch[0])
        return features

    def loss(self, task: str, features: Tensor, batch: Any) -> Tensor | None:
        if task == self.absent:
            return None
        output = self.model.heads[task](features)
        if task == "side":
            return nn.functional.binary_cross_entropy_with_logits(output, batch[1])
        return nn.functional.mse_loss(output, batch[2])

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        totals = dict.fromkeys((metric.name for metric in self.metrics), 0.0)
        for batch in batches:
            features = self.model.trunk(batch[0])
            for task in self.tasks:
                if (loss := self.loss(task, features, batch)) is not None:
                    totals[f"{task}/error"] += loss.item()
        return totals

    def describe(self) -> str:
        return "16 points"

    def describe_floor(self) -> str:
        return "0"

    def draw(self, folder: Path) -> None:
        (folder / "drawn").touch()

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        return [("What else", [f"{len(log['lr'])} steps were logged."])]


@pytest.fixture
def toy() -> type[ToyProblem]:
    return ToyProblem


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Training]:
    """start(problem, "--epochs", "2", out="name") -> a Training in tmp_path/name, new or resumed."""

    def build(problem: ToyProblem, *options: str, out: str = "run") -> Training:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments, folder = open_run(parser, ["--out", str(tmp_path / out), "--device", "cpu", "--batch-size", "4", *options])
        seed_everything(arguments.seed, deterministic=arguments.deterministic)
        return Training(problem, arguments, folder, Console(quiet=True))

    return build
