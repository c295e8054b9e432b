"""A small network with three tasks, and its loops in all forms."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

import gradsurgery as gs

TASKS = ("seg", "depth", "normal")
Losses = dict[str, Tensor]


class Net(nn.Module):
    """A trunk with dropout, and a head a task."""

    def __init__(self, tasks: tuple[str, ...] = TASKS, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tasks = tasks
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 4) for task in tasks})
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)

    def loss(self, task: str, z: Tensor, y: Tensor) -> Tensor:
        out = self.heads[task](z)
        if task == "seg":
            return cross_entropy(out, y[:, 0].long().clamp(0, 3))
        return mse_loss(out, y[:, :4]) if task == "depth" else l1_loss(out, -y[:, :4])


def batch(step: int, size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 6, generator=generator), torch.randn(size, 6, generator=generator)


def split(net: Net, surgery: gs.GradientAggregator, x: Tensor, y: Tensor, balancer: nn.Module | None = None) -> Losses:
    views = surgery.split(net.trunk(x), net.tasks)
    losses = surgery.observe({task: net.loss(task, z, y) for task, z in zip(net.tasks, views, strict=True)})
    (torch.stack(list(losses.values())).sum() if balancer is None else balancer(losses)).backward()
    return losses


def detach(net: Net, surgery: gs.GradientAggregator, x: Tensor, y: Tensor, balancer: nn.Module | None = None) -> Losses:
    d = surgery.detach(net.trunk(x))
    losses = surgery.observe({task: net.loss(task, d, y) for task in net.tasks})
    for task, loss in (losses if balancer is None else balancer.weighted(losses)).items():  # type: ignore[operator]
        with surgery.task(task):
            loss.backward(retain_graph=balancer is not None)
    surgery.backward()
    return losses


def parameters(net: Net, surgery: gs.GradientAggregator, x: Tensor, y: Tensor, balancer: nn.Module | None = None) -> Losses:
    z = net.trunk(x)
    losses = {task: net.loss(task, z, y) for task in net.tasks}
    surgery.backward(losses if balancer is None else balancer.weighted(losses), shared=net.trunk)  # type: ignore[operator]
    return losses


FORMS: dict[str, Callable[..., Losses]] = {"split": split, "detach": detach, "parameters": parameters}


def train(
    net: Net,
    surgery: gs.GradientAggregator,
    form: str = "split",
    steps: int | range = 50,
    after: Callable[[int, Losses], None] = lambda step, losses: None,
    balancer: nn.Module | None = None,
) -> None:
    for step in range(steps) if isinstance(steps, int) else steps:
        torch.manual_seed(step)  # of the dropout
        net.optimizer.zero_grad()
        losses = FORMS[form](net, surgery, *batch(step), balancer)
        net.optimizer.step()
        after(step, losses)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers(path: Path, column: str) -> list[float]:
    return [float(row[column]) for row in table(path) if row[column]]


def state(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]
