"""What ranks do in tests of surgery on representations, and what one process does alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

TASKS = 3
SAMPLES = 24  # whole samples for each of 1, 2, 3, 4 ranks, and for half a batch on them


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        method: with its ``options``, which are the aggregator's too.
        form: "split" or "detach".
        wrapped: "ddp", "static" (its static_graph), "compiled" (trunk and split, under it), "fsdp" or "hsdp" (on a mesh of 2 rows).
        micro_batches: how many make one step of the optimiser, without messages of the model but for the last.
        pyramid: the features are a dict of two tensors.
    """

    method: str = "pcgrad"
    form: str = "split"
    wrapped: str = "ddp"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    dtype: torch.dtype = torch.float64
    micro_batches: int = 1
    steps: int = 20
    pyramid: bool = False


@dataclass
class Trained:
    """What came of it.

    Attributes:
        parameters: all, whole and flat. [N]
        weights: of every step of surgery. [S, T] or [S, G, T]
        gram: K of the last step. [T, T]
        present: of every step. [S][T]
    """

    parameters: Tensor
    weights: Tensor
    gram: Tensor | None
    present: list[tuple[bool, ...]]


class Net(nn.Module):
    """A trunk and a head a task, with the surgery between them."""

    def __init__(self, surgery: gs.GradientAggregator, case: Case) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS))
        self.surgery = surgery
        self.pyramid, self.form = case.pyramid, case.form
        self.to(case.dtype)

    def views(self, x: Tensor, tasks: list[int]) -> Any:
        z = self.trunk(x)
        features = {"low": z[:, :3], "high": z[:, 3:]} if self.pyramid else z
        if self.form == "detach":
            return (self.surgery.detach(features),) * len(tasks)
        return self.surgery.split(features, [str(t) for t in tasks])

    def forward(self, x: Tensor, tasks: list[int]) -> list[Tensor]:
        joined = [torch.cat([v["low"], v["high"]], 1) if self.pyramid else v for v in self.views(x, tasks)]
        return [self.heads[t](z) for t, z in zip(tasks, joined, strict=True)]


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The whole batch of a step: inputs [24, 6] and targets [24, T]."""
    draw = torch.Generator().manual_seed(step)
    return torch.randn(SAMPLES, 6, generator=draw, dtype=dtype), torch.randn(SAMPLES, TASKS, generator=draw, dtype=dtype)


def aggregator(case: Case, group: Any) -> gs.GradientAggregator:
    return gs.GradientAggregator(case.method, tasks=TASKS, process_group=group, **case.options)


def alone(case: Case) -> Trained:
    """One process without a group, and the whole batch."""
    surgery = aggregator(case, None)
    net = Net(surgery, case)
    return _trained(net, net, surgery, case, rank=0, world=1)


def together(rank: int, cases: list[Case]) -> list[Trained]:
    """Each case on all ranks, every one with its part of the batch."""
    return [_rank_trained(rank, case) for case in cases]


def _rank_trained(rank: int, case: Case) -> Trained:
    world = dist.get_world_size()
    if case.wrapped in ("fsdp", "hsdp"):
        shape, names = ((2, world // 2), ("replicate", "shard")) if case.wrapped == "hsdp" else ((world,), ("shard",))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        surgery = aggregator(case, mesh)
        model: Any = Net(surgery, case)
        fully_shard(model.trunk, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return _trained(model, model, surgery, case, rank, world)
    surgery = aggregator(case, dist.group.WORLD)
    net = Net(surgery, case)
    if case.wrapped == "compiled":
        net.views = torch.compile(net.views, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    model = DistributedDataParallel(net, static_graph=case.wrapped == "static")
    return _trained(model, net, surgery, case, rank, world)


def _trained(model: Any, net: Net, surgery: gs.GradientAggregator, case: Case, rank: int, world: int) -> Trained:
    parameters = list(net.parameters())
    optimizer = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9) if case.optimizer == "sgd" else torch.optim.Adam(parameters, lr=0.01)
    )
    weights, present = [], []
    for step in range(case.steps):
        optimizer.zero_grad()
        for last, x, y in _micro_batches(step, case):
            with nullcontext() if last or model is net else model.no_sync():
                _propagate(model(x.chunk(world)[rank], list(range(TASKS))), y.chunk(world)[rank], surgery, case)
            assert surgery.weights is not None
            weights.append(surgery.weights)
            present.append(surgery.statistics().present)
        optimizer.step()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    kept = surgery.statistics()._gram is None
    gram = None if kept else surgery.statistics().gram
    return Trained(torch.cat([p.detach().flatten() for p in whole]), torch.stack(weights), gram, present)


def _micro_batches(step: int, case: Case) -> Iterator[tuple[bool, Tensor, Tensor]]:
    x, y = batch(step, case.dtype)
    parts = list(zip(x.chunk(case.micro_batches), y.chunk(case.micro_batches), strict=True))
    for k, (x, y) in enumerate(parts):
        yield k == len(parts) - 1, x, y


def _propagate(outputs: list[Tensor], targets: Tensor, surgery: gs.GradientAggregator, case: Case) -> None:
    losses = [(o[:, 0] - targets[:, t]).square().mean() / case.micro_batches for t, o in enumerate(outputs)]
    if case.form == "split":
        torch.stack(losses).sum().backward()
        return
    for loss in losses:
        loss.backward()
    surgery.backward()
