"""What ranks do that have different numbers of batches, and what one process does alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks.representation import TASKS, Case, Net, aggregator, batch
from ranks.said import said
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

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
    return [said(lambda arguments=arguments: surgery.join(*arguments)) for arguments in models]
