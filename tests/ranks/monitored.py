"""What a process of a monitored job does."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

TASKS = ("seg", "depth")


def steps(rank: int, folder: str, ends_first: bool) -> tuple[list[float], list[float], list[str]]:
    """-> |out| and the losses of one task in this rank's rows, and what lies in its folder after each is closed."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 4))
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=dist.group.WORLD)
    heard: list[int] = []
    monitor = gs.Monitor(surgery, folder, lambda step, values: heard.append(step), read_every=2)
    for step in range(5):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(10 * step + rank))
        views = surgery.split(model(x))
        losses = surgery.observe([views[0].square().mean(), (views[1] - 1).abs().mean()])
        torch.stack(losses).sum().backward()
    if ends_first:
        dist.destroy_process_group()
    monitor.close()
    rows = monitor.rows
    return [row.values["norm"] for row in rows], [row.values["loss/seg"] for row in rows], [str(step) for step in heard]


def separately(rank: int, folder: str, ends_first: bool) -> tuple[list[float], list[float], list[str], bool]:
    """The same, each rank with a folder of its own, so that nobody's files hide another's."""
    own = Path(folder, str(rank))
    return *steps(rank, str(own), ends_first), own.exists()
