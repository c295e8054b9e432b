"""What ranks do in tests of the cost model: a step of every mode, with its messages counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from ranks.sharded import Wire
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

TASKS, WIDTH = 3, 64


class Net(nn.Module):
    """A trunk of N parameters, heads of M in all, and what may stand between them."""

    def __init__(self, between: gs.GradientAggregator | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 8) for _ in range(TASKS))
        self.between = between

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        z = self.trunk(x)
        views = (z,) * TASKS if self.between is None else self.between.split(z)
        return {t: head(view).square().mean() for t, (head, view) in enumerate(zip(self.heads, views, strict=True))}


def costs(rank: int) -> dict[str, list[tuple[str, int]]]:
    """The collectives of the third step of every mode: their names, and the bytes at the larger end."""
    world = dist.get_world_size()
    x = torch.randn(4 * world, WIDTH, generator=torch.Generator().manual_seed(1)).chunk(world)[rank]

    def aggregator(**options: str) -> gs.GradientAggregator:
        return gs.GradientAggregator("cagrad", tasks=TASKS, process_group=dist.group.WORLD, **options)

    def counted(model: nn.Module, backward: Callable[[dict[int, Tensor]], object]) -> list[tuple[str, int]]:
        for _ in range(2):  # DistributedDataParallel builds its buckets anew after the first
            backward(model(x))
        with Wire() as wire:
            backward(model(x))
        return wire.calls

    def summed(losses: dict[int, Tensor]) -> None:
        torch.stack(list(losses.values())).sum().backward()

    found = {}
    for mode, between in (("data parallel", None), ("representation", aggregator())):
        found[mode] = counted(DistributedDataParallel(Net(between)), summed)
    for mode, surgery in (("parameters", aggregator()), ("local", aggregator(sync="local"))):
        net = Net(None)

        def on_parameters(losses: dict[int, Tensor], surgery: gs.GradientAggregator = surgery, net: Net = net) -> None:
            surgery.backward(list(losses.values()), shared=net.trunk, inputs=net)

        found[mode] = counted(net, on_parameters)
    mesh, surgery, whole = init_device_mesh("cpu", (world,)), aggregator(), Net(None)
    for part in (whole.trunk, whole):
        fully_shard(part, mesh=mesh)
    found["parameters, fully sharded"] = counted(whole, lambda losses: surgery.backward(list(losses.values()), shared=whole.trunk))
    return found
