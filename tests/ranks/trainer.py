"""What ranks do in tests of the trainers' common loop: a small problem, trained as torchrun would start it."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness.arguments import add_arguments, open_run
from harness.errors import RunError
from harness.metric import Metric
from harness.model import MultiTaskModel
from harness.problem import Series
from harness.processes import agreed, attempt, average
from harness.replicas import synchronize_batch_norm
from harness.reproducibility import seed_everything
from harness.training import Training
from ranks.launch import PRELOADED
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from gradsurgery.balancers.uncertainty import Kind

PRELOADED.extend(["torch.utils.tensorboard", "torchvision", "rich.progress"])  # which every trainer imports
SAMPLES, BATCH, EPOCHS = 20, 4, 3


class Points:
    """Sums of points; "some" is known for some samples (NaN: unknown), "rare" for two of twenty, "all" for all."""

    tasks: tuple[str, ...] = ("all", "some", "rare")
    kinds: tuple[Kind, ...] = ("regression",) * 3
    name = "points"
    metrics = tuple(Metric(f"{task}/error", primary=True) for task in tasks)
    collate = None

    def __init__(self, *, dropout: float = 0.0, frozen: int = 0, stop: tuple[int, int] | None = None) -> None:
        draw = torch.Generator().manual_seed(5)
        points = torch.randn(SAMPLES, 3, generator=draw)
        targets = torch.stack([points.sum(1), points[:, 0] - points[:, 1], points.square().sum(1)], 1)
        targets[torch.rand(SAMPLES, generator=draw) < 0.5, 1] = torch.nan
        targets[2:, 2] = torch.nan
        self.train_data: Dataset[Any] = TensorDataset(points, targets)
        self.val_data = self.train_data
        torch.manual_seed(0)
        first = nn.Linear(3, 8)
        trunk = nn.Sequential(first, nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 6))
        self.model = MultiTaskModel(trunk, {task: nn.Linear(6, 1) for task in self.tasks})
        self.loss_units, self.floors = dict.fromkeys(self.tasks, "squared"), {metric.name: 4.0 for metric in self.metrics}
        self.first, self.frozen, self.stop, self.steps = first, frozen, stop, 0

    def start_epoch(self, epoch: int) -> None:
        self.first.requires_grad_(epoch >= self.frozen)

    def represent(self, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.steps += 1
            if self.stop is not None and self.steps == self.stop[0]:
                os.kill(os.getpid(), self.stop[1])
        features: Tensor = self.model.trunk(batch[0])
        return features

    def loss(self, task: str, features: Tensor, batch: Any) -> Tensor | None:
        target = batch[1][:, self.tasks.index(task)]
        known = target.isfinite()
        count = average(known.sum())
        if not count:
            return None
        return (self.model.heads[task](features)[:, 0] - target)[known].square().sum() / count

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        totals = torch.zeros(2, len(self.tasks), dtype=torch.float64)
        for x, y in batches:
            features = self.model.trunk(x)
            for t, task in enumerate(self.tasks):
                known = y[:, t].isfinite()
                totals[0, t] += (self.model.heads[task](features)[:, 0] - y[:, t])[known].abs().sum()
                totals[1, t] += known.sum()
        errors = average(totals)
        return {f"{task}/error": float(errors[0, t] / errors[1, t]) for t, task in enumerate(self.tasks)}

    def describe(self) -> str:
        return "20 points"

    def describe_floor(self) -> str:
        return "0"

    def draw(self, folder: Path) -> None:
        pass

    def notes(self, log: Series) -> list[tuple[str, list[str]]]:
        return []


def as_launched(rank: int, world: int) -> None:
    """The environment variables of a launcher."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}


def training(out: Path, options: tuple[str, ...], **problem: Any) -> Training:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    common = ("--out", str(out), "--device", "cpu", "--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--lr", "0.03", "--double")
    arguments, folder = open_run(parser, [*common, *options])
    dist.barrier()
    seed_everything(arguments.seed, deterministic=False)
    return Training(Points(**problem), arguments, folder, Console(quiet=True))


def train(rank: int, out: Path, options: tuple[str, ...], stop: tuple[int, int, int] | None, problem: dict[str, Any]) -> Any:
    """The signal that ended the run, its step, and the parameters.

    Args:
        stop: a rank, the step in which it gets a signal, and which.
    """
    as_launched(rank, dist.get_world_size())
    run = training(out, options, **problem, stop=stop[1:] if stop is not None and stop[0] in (rank, -1) else None)
    ended = run.run()
    return ended, run.step, {name: value.clone() for name, value in run.problem.model.state_dict().items()}


def refused(rank: int, out: Path, options: tuple[str, ...], problem: dict[str, Any]) -> tuple[str, str]:
    """Which error a run ends with."""
    as_launched(rank, dist.get_world_size())
    try:
        training(out, options, **problem)
    except RunError as error:
        return type(error).__name__, str(error)
    raise AssertionError("no error")


def failing(rank: int) -> str:
    """What is told of an error that rank 1 alone has."""

    def work() -> None:
        if rank == 1:
            raise RunError("no such file")

    try:
        agreed(attempt(work))
    except RunError as error:
        return str(error)
    raise AssertionError("no error")


def normalized(rank: int, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Output, gradients at the input and at the weight, and buffers of batch normalization over the ranks' parts of x. [B, C, N]"""
    layer = nn.Sequential(nn.BatchNorm1d(x.shape[1], dtype=x.dtype))
    synchronize_batch_norm(layer, x.device)
    part, g = (value.chunk(dist.get_world_size())[rank] for value in (x, upstream))
    part.requires_grad_()
    for _ in range(2):
        layer.zero_grad()
        part.grad = None
        out = layer(part)
        out.backward(g)
    assert part.grad is not None
    gradient = layer[0].weight.grad
    assert isinstance(gradient, Tensor)
    return out.detach(), part.grad, gradient, dict(layer.named_buffers())


SIGTERM, SIGKILL = int(signal.SIGTERM), int(signal.SIGKILL)


def main(rank: int, trainer: str, port: int, options: tuple[str, ...]) -> int:
    """The exit status of a trainer's command line, which makes its own process group."""
    world = dist.get_world_size()
    dist.destroy_process_group()
    as_launched(rank, world)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    status: int = importlib.import_module(f"{trainer}.train").main(options)
    return status
