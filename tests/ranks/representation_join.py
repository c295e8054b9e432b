"""What ranks do that have different numbers of batches, and what one process does alone."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from ranks.representation import TASKS, Case, Net, aggregator, batch
from ranks.said import said
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

BATCHES = (5, 3)
"""Of each of two ranks."""


def uneven(rank: int, cases: list[tuple[Case, tuple[int, ...], bool]]) -> list[tuple[Tensor, list[Tensor]]]:
    """Parameters, and the weights of every step, after a loop of so many batches a rank and one more step of all ranks.

    The third of each case is of DistributedDataParallel's mean: over the ranks at first (True), or those that are left.
    """
    return [_one(rank, *case) for case in cases]


def _one(rank: int, case: Case, batches: tuple[int, ...], initially: bool) -> tuple[Tensor, list[Tensor]]:
    world = dist.get_world_size()
    surgery = aggregator(case, dist.group.WORLD)
    net = Net(surgery, case)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(k: int) -> None:
        x, y = (part.chunk(world)[rank] for part in batch(k, case.dtype))
        optimizer.zero_grad()
        losses = [(o[:, 0] - y[:, t]).square().mean() for t, o in enumerate(model(x, list(range(TASKS))))]
        torch.stack(losses).sum().backward()
        optimizer.step()

    with surgery.join(model, divide_by_initial_world_size=initially):
        for k in range(batches[rank]):
            step(k)
    step(max(batches))
    weights = [w for w in (s.device_weights for s in surgery.history) if w is not None]
    return torch.cat([p.detach().flatten() for p in net.parameters()]), weights


def uneven_alone(case: Case, batches: tuple[int, ...], initially: bool) -> tuple[Tensor, list[Tensor]]:
    world = len(batches)
    surgery = aggregator(case, None)
    net = Net(surgery, case)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for k in range(max(batches) + 1):
        x, y = batch(k, case.dtype)
        left = [r for r in range(world) if k < batches[r] or k == max(batches)]
        rows = torch.arange(len(x)).chunk(world)
        over = world if initially else len(left)
        optimizer.zero_grad()
        outputs = net(x, list(range(TASKS)))
        losses = [(o[rows[r], 0] - y[rows[r], t]).square().mean() / over for r in left for t, o in enumerate(outputs)]
        torch.stack(losses).sum().backward()
        optimizer.step()
    weights = [w for w in (s.device_weights for s in surgery.history) if w is not None]
    return torch.cat([p.detach().flatten() for p in net.parameters()]), weights


class TwoLevels(nn.Module):
    """Two aggregators, one above the other: task 0 leaves at the first."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.low, self.high = nn.Linear(6, 8).double(), nn.Linear(8, 8).double()
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS)).double()
        self.first = gs.GradientAggregator("pcgrad", tasks=2, process_group=group)
        self.second = gs.GradientAggregator("upgrad", tasks=TASKS - 1, process_group=group)

    def forward(self, x: Tensor) -> Tensor:
        z, rest = self.first.split(torch.tanh(self.low(x)))
        views = (z, *self.second.split(torch.tanh(self.high(rest))))
        return torch.cat([head(view) for head, view in zip(self.heads, views, strict=True)], 1)


def two_levels(rank: int | None) -> dict[str, Tensor]:
    """The parameters; of one process with the whole batch, where there is no rank."""
    net = TwoLevels(None if rank is None else dist.group.WORLD)
    model = net if rank is None else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with nullcontext() if rank is None else net.second.join(model):
        for k in range(max(BATCHES) if rank is None else BATCHES[rank]):
            x, y = batch(k, torch.float64)
            parts = [(x.chunk(2)[r], y.chunk(2)[r]) for r in range(2) if (k < BATCHES[r] if rank is None else r == rank)]
            losses = [(model(x) - y).square().mean(0).sum() for x, y in parts] if rank is not None else _of_parts(model, parts)
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
    return {name: p.detach() for name, p in net.named_parameters()}


def _of_parts(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """In one forward pass, the ranks' losses' shares of their mean over two."""
    out = model(torch.cat([x for x, _ in parts])).chunk(len(parts))
    return [(o - y).square().mean(0).sum() / 2 for o, (_, y) in zip(out, parts, strict=True)]


def terminated(rank: int) -> int:
    """How many steps were taken until every rank was told that one has no batch left."""
    surgery = aggregator(Case(), dist.group.WORLD)
    net = Net(surgery, Case())
    model = DistributedDataParallel(net)
    steps = 0
    try:
        with surgery.join(model, throw_on_early_termination=True):
            for k in range(BATCHES[rank]):
                x, _ = batch(k, torch.float64)
                torch.stack([o.square().mean() for o in model(x, [0, 1, 2])]).sum().backward()
                steps += 1
    except RuntimeError as error:
        return steps if "exhausted" in str(error) else -1
    return -1


def refused(rank: int) -> list[str]:
    """What join says of models and methods that it cannot serve."""
    half = [dist.new_group([r]) for r in range(2)][rank]
    surgery = aggregator(Case("nashmtl"), dist.group.WORLD)
    net = Net(surgery, Case())
    models = ((net,), (DistributedDataParallel(net, process_group=half),), (DistributedDataParallel(net), False))
    told = [said(lambda arguments=arguments: surgery.join(*arguments)) for arguments in models]
    on_parameters = aggregator(Case("pcgrad"), dist.group.WORLD)
    model = DistributedDataParallel(net)

    def attempt() -> None:
        on_parameters.backward([net.trunk(batch(0, torch.float64)[0]).sum(), None, None], shared=net.trunk)

    with on_parameters.join(model, enable=False):
        told.append(said(attempt))
    told.append(said(attempt))
    return told


def by_itself(rank: int, local: bool) -> list[str]:
    """What is warned of in two steps without a process group, or with one that says so."""
    options = {"process_group": dist.group.WORLD, "sync": "local"} if local else {}
    surgery = gs.GradientAggregator("pcgrad", tasks=2, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            one, other = surgery.split(torch.ones(2, requires_grad=True) * 1)
            (one.sum() - 2 * other.sum()).backward()
    return [str(warning.message) for warning in caught]
