"""What ranks do in tests that count the messages of surgery on representations."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ranks.counted import Counted, Message, profiled
from ranks.representation import TASKS, Case, Net, batch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs


class Plain(nn.Module):
    """No surgery: the tasks' gradients add up."""

    def split(self, features: Tensor, tasks: list[str]) -> tuple[Tensor, ...]:
        return (features,) * len(tasks)


def counts(rank: int, wrapped: str) -> dict[str, tuple[list[Message], int]]:
    """The messages of the third step, without surgery and with several, and how many the profiler counts in the sixth."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    surgeries: dict[str, Any] = {
        "plain": Plain(),
        "global": gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=mesh),
        "local": gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=mesh, sync="local"),
        "groups": gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=mesh, group_by="tensor"),
        "serving": gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=mesh, every=3),
        "losses": gs.GradientAggregator("mgda", gn="loss", tasks=TASKS, process_group=mesh),
    }
    return {name: _counted(rank, surgery, wrapped, mesh, pyramid=name == "groups") for name, surgery in surgeries.items()}


def _counted(rank: int, surgery: Any, wrapped: str, mesh: Any, pyramid: bool) -> tuple[list[Message], int]:
    model: Any = Net(surgery, Case(pyramid=pyramid))
    if wrapped == "fsdp":
        fully_shard(model.trunk, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model, broadcast_buffers=wrapped == "ddp with buffers")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(k: int) -> None:
        x, y = (part.chunk(mesh.size())[rank] for part in batch(k, torch.float64))
        losses = [(o[:, 0] - y[:, t]).square().mean() for t, o in enumerate(model(x, list(range(TASKS))))]
        optimizer.zero_grad()
        torch.stack(losses if isinstance(surgery, Plain) else surgery.observe(losses)).sum().backward()
        optimizer.step()

    step(0)
    step(1)
    with Counted() as counted:
        step(2)
    step(3)
    step(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(5)
    return counted.messages, profiled(profile.key_averages())
