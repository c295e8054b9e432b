"""A problem of a few numbers, small enough to train in every test."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.arguments import add_arguments, open_run
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
    metric_names: tuple[str, ...] = ("side/error", "height/error")
    headline: tuple[str, ...] = ("height/error",)

    def __init__(self, *, samples: int = 16, absent: str | None = None, after_step: Callable[[int], None] | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        points = torch.randn(samples, 3, generator=generator)
        self.train_data: Dataset[Any] = TensorDataset(points, (points[:, :1] > 0).float(), points.sum(1, keepdim=True))
        self.val_data = self.train_data
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {"trunk": nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.25)), "side": nn.Linear(8, 1), "height": nn.Linear(8, 1)}
        )
        self.loss_units = {"side": "nats", "height": "squared"}
        self.absent, self.after_step, self.steps, self.passes = absent, after_step, 0, 0

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        heads = [*self.model["side"].parameters(), *self.model["height"].parameters()]
        return [{"params": list(self.model["trunk"].parameters()), "lr": lr}, {"params": heads, "lr": head_lr}]

    def start_epoch(self, epoch: int) -> None:
        pass

    def represent(self, batch: Any) -> Tensor:
        self.passes += 1
        self.steps += torch.is_grad_enabled()
        if self.after_step is not None and torch.is_grad_enabled():
            self.after_step(self.steps)
        features: Tensor = self.model["trunk"](batch[0])
        return features

    def loss(self, task: str, features: Tensor, batch: Any) -> Tensor | None:
        if task == self.absent:
            return None
        output = self.model[task](features)
        if task == "side":
            return nn.functional.binary_cross_entropy_with_logits(output, batch[1])
        return nn.functional.mse_loss(output, batch[2])

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        totals = dict.fromkeys(self.metric_names, 0.0)
        for batch in batches:
            features = self.model["trunk"](batch[0])
            for task in self.tasks:
                if (loss := self.loss(task, features, batch)) is not None:
                    totals[f"{task}/error"] += loss.item()
        return totals

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["height/error"]


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
