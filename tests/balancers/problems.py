"""A network of three tasks whose losses differ a hundredfold, and a training loop that serves every balancer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers import Balancer

TASKS = ("a", "b", "c")
SCALES = {"a": 1.0, "b": 10.0, "c": 0.1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({t: nn.Linear(8, 2) for t in TASKS})

    def features(self, seed: int) -> Tensor:
        x = torch.randn(9, 6, generator=torch.Generator().manual_seed(seed))
        return self.trunk(x).tanh()  # type: ignore[no-any-return]

    def losses(self, views: Sequence[Tensor], seed: int, absent: Iterable[str] = ()) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        targets = {t: torch.randn(9, 2, generator=g) for t in TASKS}
        pairs = zip(TASKS, views, strict=True)
        return {
            t: SCALES[t] * (self.heads[t](z) - targets[t]).square().mean() + 0.01 * SCALES[t] for t, z in pairs if t not in absent
        }


def build(name: str, layer: nn.Module, tasks: Sequence[str] = TASKS, **options: Any) -> Balancer:
    """A balancer by its name; one that reads gradients reads them at ``layer``."""
    spec = gs.balancers()[name]
    if "reads_gradients" in spec.properties:
        options["layer"] = layer
    return spec.build(tasks, **options)


class Run:
    """A training run with surgery at the representation, PCGrad in random order."""

    def __init__(self, name: str, tasks: Sequence[str] = TASKS) -> None:
        self.properties = gs.balancers()[name].properties
        self.net = Net()
        self.surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
        self.balancer = build(name, self.net.trunk, tasks)
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *self.balancer.parameters()], lr=0.01)

    def step(self, seed: int) -> Tensor:
        """One step; every third lacks a task, and an epoch is two steps."""
        absent = TASKS[seed % 2] if seed % 3 == 2 else ()
        self.optimizer.zero_grad()
        total = self.balancer(self.net.losses(self.surgery.split(self.net.features(seed), 3), seed, absent))  # type: ignore[arg-type]
        total.backward()
        self.optimizer.step()
        if "updates_after_step" in self.properties:
            with torch.no_grad():
                self.balancer.update(self.net.losses([self.net.features(seed)] * 3, seed, absent))  # type: ignore[operator]
        if "counts_epochs" in self.properties and seed % 2:
            self.balancer.end_epoch()  # type: ignore[operator]
        return total.detach()

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in (self.net, self.surgery, self.balancer, self.optimizer)]

    def load(self, state: list[dict[str, Any]]) -> None:
        for part, saved in zip((self.net, self.surgery, self.balancer, self.optimizer), state, strict=True):
            part.load_state_dict(saved)  # type: ignore[attr-defined]


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, NaN to NaN, through dicts and sequences."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
