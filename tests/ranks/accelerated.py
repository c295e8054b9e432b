"""What ranks do in tests of surgery in accelerate's loop."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from integrations.problems import TASKS, Network, batch, losses
from torch import Tensor

import gradsurgery as gs


def numbers(step: int, micro: int, world: int) -> list[int]:
    """Of the ranks' batches. [world]"""
    return [world * (2 * step + micro) + rank for rank in range(world)]


def train(rank: int, micro_batches: int) -> Tensor:
    """The parameters after two steps with an Accelerator."""
    world = dist.get_world_size()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
    }
    from accelerate import Accelerator, DistributedType

    from gradsurgery.integrations.accelerate import backward

    one = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    assert one.distributed_type == DistributedType.MULTI_CPU
    plain = Network()
    net, optimizer = one.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, seed=3, process_group=dist.group.WORLD)
    for step in range(2):
        for micro in range(micro_batches):
            x, y = batch(numbers(step, micro, world)[rank])
            with one.accumulate(net):
                backward(one, surgery, losses(net(x), y), plain.trunk)
                optimizer.step()
                optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in plain.parameters()])
