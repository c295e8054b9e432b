"""What ranks do in tests of balancers."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from ranks.counted import Counted, Message
from ranks.said import said
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs
from gradsurgery.balancers import Balancer

TASKS = ("a", "b", "c")
SCALES = {"a": 1.0, "b": 10.0, "c": 0.1}


@dataclass(frozen=True)
class Case:
    """A balancer in a loop: with which surgery, in which form, and over how many micro-batches."""

    balancer: str
    method: str = "sum"
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = "layer"  # of GradNorm's norms
    form: str = "split"
    micro: int = 1

    def __str__(self) -> str:
        options = "-".join(f"{name}={value}" for name, value in self.options.items())
        source = self.source if self.balancer == "gradnorm" else ""
        return "-".join(part for part in (self.balancer, self.method, source, options, self.form, f"{self.micro}") if part)


class Net(nn.Module):
    def __init__(self, surgery: gs.GradientAggregator) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())
        self.heads = nn.ModuleDict({t: nn.Linear(5, 2) for t in TASKS})
        self.surgery = surgery
        self.double()

    def forward(self, x: Tensor, form: str = "split") -> tuple[dict[str, Tensor], Tensor]:
        """The heads' outputs, and a zero that depends on all parameters: every rank's backward pass reaches each of them."""
        z = self.trunk(x)
        views = self.surgery.split(z) if form == "split" else (self.surgery.detach(z),) * len(TASKS)
        zero = sum((0.0 * p.sum() for p in self.parameters()), torch.zeros(()))
        return {t: head(view) for (t, head), view in zip(self.heads.items(), views, strict=True)}, zero


def batch(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs [12, 6], and targets [12, 2] a task."""
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(12, 6, generator=draw, dtype=torch.float64)
    return x, {t: torch.randn(12, 2, generator=draw, dtype=torch.float64) for t in TASKS}


def absent(number: int, part: int, parts: int) -> str:
    """The tasks that a part of a batch lacks: some on some ranks, one on all, all on one."""
    patterns: list[Callable[[], str]] = [
        lambda: "",
        lambda: "b" if part == 0 else "",
        lambda: "c",
        lambda: "abc" if part == parts - 1 else "",
        lambda: "ac" if part == 0 else "b",
    ]
    return patterns[number % 5]()


def losses_of(out: Mapping[str, Tensor], targets: Mapping[str, Tensor], without: str) -> dict[str, Tensor]:
    return {t: SCALES[t] * ((o - targets[t]).square().mean() + 0.01) for t, o in out.items() if t not in without}


class Loop:
    """Training with a balancer, as one of the ranks or as one process with all of their parts of a batch."""

    def __init__(self, case: Case, parts: int, rank: int | None) -> None:
        self.case, self.parts, self.rank = case, parts, rank
        group = None if rank is None else dist.group.WORLD
        self.surgery = gs.GradientAggregator(case.method, tasks=TASKS, process_group=group)
        self.net = Net(self.surgery)
        spec = gs.balancers()[case.balancer]
        options = dict(case.options)
        if "reads_gradients" in spec.properties:
            options[case.source] = self.surgery if case.source == "aggregator" else self.net.trunk[2]
        self.balancer = spec.build(TASKS, **options, process_group=group if case.source == "layer" else None).double()
        self.properties = spec.properties
        wrapped = rank is not None and case.form == "split"
        self.model: nn.Module = DistributedDataParallel(self.net) if wrapped else self.net
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)]
        if "learned" in spec.properties:
            self.optimizers.append(torch.optim.Adam(self.balancer.parameters(), lr=0.02))

    def losses(self, out: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Of this rank's part, or the means over all parts."""
        targets, n = batch(number)[1], 12 // self.parts
        if self.rank is not None:
            mine = {t: y[self.rank * n : (self.rank + 1) * n] for t, y in targets.items()}
            return losses_of(out, mine, absent(number, self.rank, self.parts))
        found: dict[str, Tensor] = {}
        for part in range(self.parts):
            rows = slice(part * n, (part + 1) * n)
            cut = ({t: values[t][rows] for t in TASKS} for values in (out, targets))
            for t, loss in losses_of(*cut, absent(number, part, self.parts)).items():
                found[t] = found.get(t, 0.0) + loss / self.parts
        return found

    def inputs(self, number: int) -> Tensor:
        x = batch(number)[0]
        return x if self.rank is None else x.chunk(self.parts)[self.rank]

    def backward(self, number: int) -> Tensor:
        """Surgery on the gradients of one micro-batch, which are added to those that are there."""
        out, zero = self.model(self.inputs(number), self.case.form)
        losses = self.losses(out, number)
        if self.case.form == "split":
            total = self.balancer(losses)
            if not losses:
                self.surgery.take_part()
            (total / self.case.micro + zero).backward()
            return total.detach()
        if not losses:
            total = self.balancer({})
            self.surgery.reset()
            self.surgery.take_part()
            if total.requires_grad:
                (total / self.case.micro).backward()
            return total.detach()
        terms = self.balancer.weighted(losses)
        for t, term in terms.items():
            with self.surgery.task(t):
                (term / self.case.micro).backward()
        self.surgery.backward()
        return torch.stack(list(terms.values())).sum().detach()

    def step(self, number: int) -> Tensor:
        """One step; the balanced loss of the whole batch in its last micro-batch."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for micro in range(self.case.micro):
            last = micro == self.case.micro - 1
            quiet = nullcontext() if last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()
            with quiet:
                total = self.backward(number * self.case.micro + micro)
        if self.model is self.net:  # no wrapper averages; and momentum goes on where a task is absent, on ranks and alone
            for p in self.net.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                if self.rank is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= self.parts
        for optimizer in self.optimizers:
            optimizer.step()
        last_number = number * self.case.micro + self.case.micro - 1
        if "updates_after_step" in self.properties and not self.case.options.get("update_on_next_call"):
            with torch.no_grad():
                out = self.net(self.inputs(last_number))[0]
                self.balancer.update(self.losses(out, last_number))  # type: ignore[operator]
        if "counts_epochs" in self.properties and number % 4 == 3:
            self.balancer.end_epoch()  # type: ignore[operator]
        if self.rank is not None and self.case.balancer == "constant":  # which exchanges nothing
            total = total.double()
            dist.all_reduce(total)
            total = total / self.parts
        return total

    def state(self) -> list[Any]:
        return copy.deepcopy([part.state_dict() for part in (self.net, self.balancer, *self.optimizers)])

    def load(self, state: list[Any]) -> None:
        for part, saved in zip((self.net, self.balancer, *self.optimizers), copy.deepcopy(state), strict=True):
            part.load_state_dict(saved)


Outcome = tuple[list[Any], Tensor, Tensor]
"""States at the end, weights [steps, T], balanced losses [steps]."""


def trained(case: Case, parts: int, rank: int | None, steps: range, start: list[Any] | None = None) -> Outcome:
    loop = Loop(case, parts, rank)
    if start is not None:
        loop.load(start)
    totals, weights = [], []
    for number in steps:
        totals.append(loop.step(number))
        weights.append(loop.balancer.weights)
    return loop.state(), torch.stack(weights), torch.stack(totals)


def train(rank: int, cases: list[Case], steps: range, starts: bytes | None = None) -> list[Outcome]:
    """What each case came to on a rank, from states that were saved."""
    begin: list[Any] = [None] * len(cases) if starts is None else torch.load(io.BytesIO(starts))
    return [trained(case, dist.get_world_size(), rank, steps, start) for case, start in zip(cases, begin, strict=True)]


# --- single calls -----------------------------------------------------------------------------------------------------------


Calls = dict[str, list[Message]]


def taken(counted: Counted) -> list[Message]:
    messages, counted.messages = counted.messages, []
    return messages


def count(rank: int, names: list[str], source: str, dtype: torch.dtype) -> dict[str, Calls]:
    """The collectives in each call of each balancer; rank 0 lacks a task."""
    found: dict[str, Calls] = {}
    for name in names:
        surgery = gs.GradientAggregator("sum", tasks=TASKS, process_group=dist.group.WORLD)
        layer = nn.Linear(4, 3, dtype=dtype)
        options: dict[str, Any] = {}
        if name == "gradnorm":
            options = {source: surgery if source == "aggregator" else layer}
        group = None if source == "aggregator" else dist.group.WORLD
        balancer = gs.balancers()[name].build(TASKS, **options, process_group=group)

        def losses(layer: nn.Linear = layer, surgery: gs.GradientAggregator = surgery) -> dict[str, Tensor]:
            views = surgery.split(layer(torch.ones(2, 4, dtype=dtype)))
            return {t: view.square().mean() for t, view in zip(TASKS, views, strict=True) if rank or t != "b"}

        calls = found[name] = {}
        with Counted() as counted:
            total = balancer(losses())
            calls["call"] = taken(counted)
            total.backward()
            calls["backward"] = taken(counted)
            if hasattr(balancer, "update"):
                balancer.update(losses())
                calls["update"] = taken(counted)
            if hasattr(balancer, "end_epoch"):
                balancer.end_epoch()
                calls["end_epoch"] = taken(counted)
            balancer.weighted(losses())
            calls["weighted"] = taken(counted)
            with torch.no_grad():
                balancer(losses())
            balancer.eval()
            if rank:  # the others need not come
                balancer(losses())
            balancer.state_dict()
            calls["out of training"] = taken(counted)
    return found


def disagree(rank: int, others: dict[str, dict[str, Any]]) -> dict[tuple[str, str], str]:
    """What is said of each balancer's tasks, and of each option whose value rank 1 has differently."""
    found = {}
    for name, options in others.items():
        spec = gs.balancers()[name]

        def build(tasks: Any = TASKS, width: int = 3, spec: Any = spec, **options: Any) -> Balancer:
            if "reads_gradients" in spec.properties:
                torch.manual_seed(0)
                options["layer"] = nn.Linear(2, width)
            return spec.build(tasks, process_group=dist.group.WORLD, **options)  # type: ignore[no-any-return]

        found[name, "tasks"] = said(lambda build=build: build(TASKS[:: 1 - 2 * rank]))
        found[name, "number"] = said(lambda build=build: build(3 + rank))
        for option, value in options.items():
            if option == "layer":
                found[name, option] = said(lambda build=build: build(width=3 + rank))
            elif option != "aggregator":
                given = {option: value} if rank else {}
                found[name, option] = said(lambda build=build, given=given: build(**given))
    found["uw", "balancer"] = said(lambda: gs.balancers()[("uw", "imtll")[rank]].build(TASKS, process_group=dist.group.WORLD))
    return found


def misuse(rank: int) -> dict[str, str]:
    """What is said of calls that cannot be."""
    group = dist.group.WORLD
    balancer = gs.UncertaintyWeighting(TASKS, process_group=group)
    geometric = gs.GeometricMean(TASKS, process_group=group)
    famo = gs.FAMO(TASKS, process_group=group)
    ones = {t: torch.ones((), requires_grad=True) for t in TASKS}
    alone = gs.GradientAggregator("sum", tasks=TASKS)
    local = gs.GradientAggregator("sum", tasks=TASKS, process_group=group, sync="local")
    shared = gs.GradientAggregator("sum", tasks=TASKS, process_group=group)
    famo(ones)
    twos = dict.fromkeys(TASKS[:: 1 - 2 * rank], 2.0)
    return {
        "none": said(lambda: balancer({})),
        "none of loss-only": said(lambda: geometric([None] * 3)),
        "weighted": said(lambda: balancer.weighted({})),
        "eval": said(lambda: copy.deepcopy(balancer).eval()({})),
        "update": said(lambda: famo.update({"a": ones["a"]})),
        "aggregator and group": said(lambda: gs.GradNorm(TASKS, aggregator=alone, process_group=group)),
        "local": said(lambda: gs.GradNorm(TASKS, aggregator=local)),
        "differs": said(lambda: gs.GradNorm(TASKS, aggregator=shared, alpha=1.0 + rank)),
        "other order": said(lambda: gs.ConstantWeights(TASKS, weights=twos, process_group=group)),
        "no group": said(lambda: gs.IMTLLoss(TASKS, process_group="gloo")),
    }


def diverged(rank: int) -> tuple[str, str]:
    """A rank whose state differs, with and without checks."""
    assert os.environ["TORCH_DISTRIBUTED_DEBUG"] == "DETAIL"
    balancer = gs.UncertaintyWeighting(TASKS, process_group=dist.group.WORLD)
    ones = {t: torch.ones((), requires_grad=True) for t in TASKS}
    fine = said(lambda: balancer(ones))
    with torch.no_grad():
        balancer.log_vars[1] += rank
    return fine, said(lambda: balancer(ones))


def broken(rank: int, names: list[str]) -> dict[str, tuple[Tensor, Any, Any]]:
    """One rank's loss is NaN: the value, the state after it, and after a step more."""
    found = {}
    for name in names:
        loop = Loop(Case(name), dist.get_world_size(), rank)
        for number in (0, 5):
            loop.step(number)
        layer = loop.net.trunk[2]
        losses = {t: SCALES[t] * layer.weight.square().sum() for t in TASKS}
        total = loop.balancer({**losses, "b": losses["b"] * torch.nan} if rank else losses)
        if "updates_after_step" in loop.properties:
            loop.balancer.update(losses)  # type: ignore[operator]
        state = copy.deepcopy(loop.balancer.state_dict())
        loop.step(10)
        found[name] = (total.detach(), state, loop.balancer.state_dict())
    return found


def wrapped(rank: int, steps: int) -> tuple[Tensor, Tensor]:
    """log-variances learned by a balancer that stands in a model under DistributedDataParallel, and by one beside it."""
    found = []
    for inside in (True, False):
        balancer = gs.UncertaintyWeighting(TASKS, process_group=dist.group.WORLD).double()
        layer = nn.Linear(2, 3, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.fill_(0.5)
            layer.bias.zero_()

        class Model(nn.Module):
            def __init__(self, layer: nn.Module, balancer: Balancer | None) -> None:
                super().__init__()
                self.layer, self.balancer = layer, balancer

            def forward(self, x: Tensor) -> Any:
                losses = [loss if rank or t else None for t, loss in enumerate(self.layer(x).square().mean(0))]
                return losses if self.balancer is None else self.balancer(losses)

        model = DistributedDataParallel(Model(layer, balancer if inside else None))
        optimizer = torch.optim.SGD(balancer.parameters(), lr=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * step + rank), dtype=torch.float64)
            out = model(x)
            (out if inside else balancer(out)).backward()
            optimizer.step()
        found.append(balancer.log_vars.detach())
    return found[0], found[1]


def mixed(rank: int, dtypes: list[torch.dtype]) -> list[tuple[torch.dtype, Tensor, Tensor]]:
    """Losses of 16 bits, of which rank 0 has two and the others three: the value, and the gradient of the first."""
    found = []
    for dtype in dtypes:
        balancer = gs.GeometricMean(TASKS, process_group=dist.group.WORLD)
        leaves = [torch.tensor(1.0 + t + rank, dtype=dtype, requires_grad=True) for t in range(3)]
        total = balancer([leaves[0], leaves[1] if rank else None, leaves[2]])
        total.backward()
        assert leaves[0].grad is not None
        found.append((total.dtype, total.detach(), leaves[0].grad))
    return found


def copies(rank: int) -> tuple[bool, str]:
    """Whether a copy balances as the original does; and what is said of a pickle."""
    balancer = gs.SoftmaxUncertainty(TASKS, process_group=dist.group.WORLD)
    losses = [torch.tensor(1.0 + t + rank, requires_grad=True) for t in range(3)]
    return torch.equal(copy.deepcopy(balancer)(losses), balancer(losses)), said(lambda: pickle.dumps(balancer))
