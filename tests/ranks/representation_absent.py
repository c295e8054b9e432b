"""What ranks do in tests where some of them lack tasks, and what one process does alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from ranks.representation import TASKS, Case, Net, aggregator, batch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

SCHEDULE: list[tuple[list[int], list[int]]] = [
    ([0, 1, 2], [0, 1, 2]),
    ([0, 1], [1, 2]),
    ([], [0, 2]),
    ([0], [0]),  # the others are absent everywhere
    ([0, 1, 2], []),
    ([2], [0, 1]),
    ([0, 2], [0, 2]),
    ([0, 1, 2], [0, 1, 2]),
]
"""The tasks of each of two ranks in every step."""


@dataclass
class Seen:
    """What a training came to.

    Attributes:
        parameters: by name.
        weights, gram, cosines: of every step. [S, T], [S, T, T]
        present: of every step. [S][T]
        memory: of the method, by name.
    """

    parameters: dict[str, Tensor]
    weights: list[Tensor] = field(default_factory=list)
    gram: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)
    present: list[tuple[bool, ...]] = field(default_factory=list)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def note(self, surgery: gs.GradientAggregator) -> None:
        statistics = surgery.statistics()
        assert surgery.weights is not None
        self.weights.append(surgery.weights)
        self.gram.append(statistics.gram)
        self.cosines.append(statistics.cosines)
        self.present.append(statistics.present)
        self.memory = dict(surgery.named_buffers())


class Some(Net):
    """A network of which a rank uses some heads, or none."""

    def forward(self, x: Tensor, tasks: list[int]) -> list[Tensor]:
        if not tasks:
            return [self.trunk(x).sum() * 0.0]
        return super().forward(x, tasks)


def alone(case: Case) -> Seen:
    """The loss of a task is the mean over the ranks, and zero on one that lacks it."""
    surgery = aggregator(case, None)
    net = Net(surgery, case)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen = Seen({})
    for step, here in enumerate(SCHEDULE):
        x, y = batch(step, case.dtype)
        tasks = sorted({*here[0], *here[1]})
        rows = [range(12), range(12, 24)]
        losses = []
        for t, out in zip(tasks, net(x, tasks), strict=True):
            parts = [(out[rows[r], 0] - y[rows[r], t]).square().mean() for r in range(2) if t in here[r]]
            losses.append(torch.stack(parts).sum() / 2)
        optimizer.zero_grad(set_to_none=False)  # or momentum would not move the head of a task that is absent
        _propagate(surgery, case, tasks, losses)
        optimizer.step()
        seen.note(surgery)
    seen.parameters = {name: p.detach() for name, p in net.named_parameters()}
    return seen


def together(rank: int, cases: list[Case]) -> list[Seen]:
    return [_one(rank, case) for case in cases]


def _one(rank: int, case: Case) -> Seen:
    surgery = aggregator(case, dist.group.WORLD)
    net = Some(surgery, case)
    model = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen = Seen({})
    for step, here in enumerate(SCHEDULE):
        tasks = here[rank]
        x, y = (part.chunk(2)[rank] for part in batch(step, case.dtype))
        outputs = model(x, tasks)
        optimizer.zero_grad(set_to_none=False)
        if tasks:
            losses = [(o[:, 0] - y[:, t]).square().mean() for t, o in zip(tasks, outputs, strict=True)]
            _propagate(surgery, case, tasks, losses)
        else:
            surgery.take_part()
            outputs[0].backward()
        optimizer.step()
        seen.note(surgery)
    seen.parameters = {name: p.detach() for name, p in net.named_parameters()}
    return seen


def _propagate(surgery: gs.GradientAggregator, case: Case, tasks: list[int], losses: list[Tensor]) -> None:
    if "losses" in surgery.method.needs:
        surgery.observe({str(t): loss for t, loss in zip(tasks, losses, strict=True)})
    torch.stack(losses).sum().backward()


# --- without a wrapper ----------------------------------------------------------------------------------------------------------


def unused_views(rank: int, form: str) -> list[tuple[Tensor, Tensor]]:
    """All views are there, and a rank's losses use some of them; the gradient of the trunk and w, of every step."""
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, reduction="mean", process_group=dist.group.WORLD)
    net = Net(surgery, Case())
    results = []
    for step, here in enumerate(SCHEDULE):
        x, y = (part.chunk(2)[rank] for part in batch(step, torch.float64))
        net.zero_grad(set_to_none=False)
        z = net.trunk(x)
        if form == "split":
            views = surgery.split(z)
            losses = [(net.heads[t](views[t])[:, 0] - y[:, t]).square().mean() for t in here[rank]]
            if losses:
                torch.stack(losses).sum().backward()
            else:
                surgery.take_part()
        else:
            features = surgery.detach(z)
            for t in reversed(here[rank]):
                with surgery.task(str(t)):
                    (net.heads[t](features)[:, 0] - y[:, t]).square().mean().backward()
            if here[rank]:
                surgery.backward()
            else:
                surgery.take_part()
        gradient = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.trunk.parameters()]
        )
        dist.all_reduce(gradient)
        assert surgery.weights is not None
        results.append((gradient / 2, surgery.weights))
    return results


def unused_views_alone() -> list[tuple[Tensor, Tensor]]:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, reduction="mean")
    net = Net(surgery, Case())
    results = []
    for step, here in enumerate(SCHEDULE):
        x, y = batch(step, torch.float64)
        views = surgery.split(net.trunk(x))
        rows = [range(12), range(12, 24)]
        losses = [(net.heads[t](views[t])[rows[r], 0] - y[rows[r], t]).square().mean() / 2 for r in range(2) for t in here[r]]
        net.zero_grad()
        torch.stack(losses).sum().backward()
        assert surgery.weights is not None
        results.append((torch.cat([p.grad.flatten() for p in net.trunk.parameters() if p.grad is not None]), surgery.weights))
    return results


# --- heads that are on some ranks only ------------------------------------------------------------------------------------------

PLACED = ([0, 1], [2], [1, 2])
"""The tasks of three ranks; ranks that have the same task have a head each, which they do not share."""


def placed_heads(rank: int, steps: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The trunk is wrapped, the heads are this rank's own: their gradients are its share of the mean over the ranks."""
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=dist.group.WORLD)
    trunk, heads = _trunk_and_heads()
    mine = nn.ModuleDict({str(t): heads[f"{rank}-{t}"] for t in PLACED[rank]})
    model = DistributedDataParallel(trunk)
    optimizer = torch.optim.SGD([*trunk.parameters(), *mine.parameters()], lr=0.1)
    weights = []
    for step in range(steps):
        x, y = (part.chunk(3)[rank] for part in batch(step, torch.float64))
        views = surgery.split(model(x), list(mine))
        losses = [(head(z)[:, 0] - y[:, int(t)]).square().mean() for (t, head), z in zip(mine.items(), views, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        for p in mine.parameters():
            assert p.grad is not None
            p.grad /= 3
        optimizer.step()
        assert surgery.weights is not None
        weights.append(surgery.weights)
    named: dict[str, Any] = {f"trunk.{k}": p.detach() for k, p in trunk.named_parameters()}
    return named | {f"{rank}-{k}": p.detach() for k, p in mine.named_parameters()}, weights


def placed_heads_alone(steps: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS)
    trunk, heads = _trunk_and_heads()
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    weights = []
    for step in range(steps):
        x, y = batch(step, torch.float64)
        views = surgery.split(trunk(x))
        rows = [range(8 * r, 8 * r + 8) for r in range(3)]
        losses = [
            (heads[f"{r}-{t}"](views[t])[rows[r], 0] - y[rows[r], t]).square().mean() / 3 for r in range(3) for t in PLACED[r]
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        assert surgery.weights is not None
        weights.append(surgery.weights)
    named: dict[str, Any] = {f"trunk.{k}": p.detach() for k, p in trunk.named_parameters()}
    return named | {k: p.detach() for k, p in heads.named_parameters()}, weights


def _trunk_and_heads() -> tuple[nn.Module, nn.ModuleDict]:
    torch.manual_seed(2)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double()
    heads = nn.ModuleDict({f"{r}-{t}": nn.Linear(8, 1) for r in range(3) for t in PLACED[r]})
    return trunk, heads.double()
