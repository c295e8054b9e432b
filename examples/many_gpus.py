"""Surgery over many GPUs, or several CPU processes: the same answer as one process with the whole batch.

    torchrun --nproc-per-node 2 examples/many_gpus.py --space representation --wrap ddp
    torchrun --nproc-per-node 2 examples/many_gpus.py --space parameters --wrap fsdp
    accelerate launch --cpu --num_processes 2 examples/many_gpus.py
    python examples/many_gpus.py

prints the losses of the whole batch and a sum of the parameters, which are the same for any number of processes that divides the
batch. The lines that matter are few: the aggregator's ``process_group``, and for ``backward(losses)`` what is shared.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

TASKS = ("size", "shape")
BATCH = 24


class Model(nn.Module):
    """A trunk and a head a task; with an aggregator, surgery between them."""

    def __init__(self, surgery: gs.GradientAggregator | None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in TASKS})
        self.surgery = surgery

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        views = (z,) * len(TASKS) if self.surgery is None else self.surgery.split(z)
        return {task: self.heads[task](view) for task, view in zip(TASKS, views, strict=True)}


def batches(steps: int, rank: int, world: int, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """This process's part of every batch of inputs [B, 16] and targets [B, 1]."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(BATCH, 16, generator=draw, dtype=torch.float64)
        targets = {"size": x[:, :4].sum(1, keepdim=True), "shape": x[:, 2:3] * x[:, 3:4] - x[:, 4:5]}
        yield x.chunk(world)[rank].to(device), {task: y.chunk(world)[rank].to(device) for task, y in targets.items()}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=["representation", "parameters"], default="representation")
    parser.add_argument("--wrap", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--method", choices=sorted(gs.methods()), default="pcgrad")
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args(argv)


def train(arguments: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """The last batch's losses over all processes [T], and the sum of all parameters' magnitudes []."""
    rank, world = dist.get_rank(), dist.get_world_size()
    surgery = gs.GradientAggregator(arguments.method, tasks=TASKS, process_group=dist.group.WORLD)
    between = arguments.space == "representation"
    torch.manual_seed(0)
    model = Model(surgery if between else None).to(device, torch.float64)
    if arguments.wrap == "fsdp":
        mesh = init_device_mesh(device.type, (world,))
        fully_shard(model.trunk, mesh=mesh)
        called: nn.Module = fully_shard(model, mesh=mesh)
    else:
        called = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, targets in batches(arguments.steps, rank, world, device):
        optimizer.zero_grad()
        answers = called(x)
        losses = {task: nn.functional.mse_loss(answers[task], targets[task]) for task in TASKS}
        if between:
            sum(losses.values()).backward()
        else:
            surgery.backward(losses, shared=model.trunk)
        optimizer.step()
    mean = torch.stack([losses[task].detach() for task in TASKS]) / world
    dist.all_reduce(mean)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return mean, torch.stack([p.detach().abs().sum() for p in whole]).sum()


def main(argv: Sequence[str] | None = None) -> None:
    """Run by torchrun or accelerate in every process; by itself, one process."""
    arguments = parse(argv)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29517"}.items():
        os.environ.setdefault(name, value)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        losses, size = train(arguments, device)
        if dist.get_rank() == 0:
            told = " ".join(f"{task} {loss:.12f}" for task, loss in zip(TASKS, losses.tolist(), strict=True))
            print(f"{arguments.method}: {told}, |parameters| {size.item():.12f}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
