"""What ranks do in tests of surgery on representations."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs


class Net(nn.Module):
    """A trunk and a head a task, with the surgery between them."""

    def __init__(self, surgery: gs.GradientAggregator, tasks: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(tasks))
        self.surgery = surgery
        self.to(dtype)

    def forward(self, x: Tensor) -> list[Tensor]:
        views = self.surgery.split(self.trunk(x))
        return [head(z) for head, z in zip(self.heads, views, strict=True)]


def batch(step: int, dtype: torch.dtype, size: int = 12, tasks: int = 3) -> tuple[Tensor, Tensor]:
    """The whole batch of a step: inputs [12, 6] and targets [12, T]."""
    draw = torch.Generator().manual_seed(step)
    return torch.randn(size, 6, generator=draw, dtype=dtype), torch.randn(size, tasks, generator=draw, dtype=dtype)


def train(rank: int, method: str, options: dict[str, Any], steps: int, dtype: torch.dtype, form: str) -> tuple[Tensor, Tensor]:
    """Parameters, and weights of every step, of a rank that sees its part of each batch."""
    world = dist.get_world_size()
    surgery = gs.GradientAggregator(method, tasks=3, process_group=dist.group.WORLD, **options)
    net = Net(surgery, dtype=dtype)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    weights = []
    for step in range(steps):
        x, y = (part.chunk(world)[rank] for part in batch(step, dtype))
        optimizer.zero_grad()
        out = model(x)
        sum((o[:, 0] - y[:, t]).square().mean() for t, o in enumerate(out)).backward()
        optimizer.step()
        weights.append(surgery.weights)
    return torch.cat([p.detach().flatten() for p in net.parameters()]), torch.stack(weights)
