"""What ranks do in tests of surgery on parameters; a process without a group does the same with the whole batch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs
from gradsurgery import parameter_space
from gradsurgery.distributed import buckets

TASKS = ("a", "b", "c")
SIZE = 12  # of the whole batch


class Net(nn.Module):
    """A trunk of odd sizes, with a convolution, a head a task, and a parameter in each that no loss depends on."""

    def __init__(self, dtype: torch.dtype = torch.float64, tasks: Sequence[str] = TASKS) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(45, 7), nn.Tanh())
        self.trunk.register_parameter("unused", nn.Parameter(torch.ones(3)))
        self.heads = nn.ModuleDict({task: nn.Linear(7, 1) for task in tasks})
        self.unused = nn.Parameter(torch.ones(2))
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z)[:, 0] for task, head in self.heads.items()}


def mask_of(tasks: Sequence[str], labels: Tensor, task: str) -> Tensor:
    """Which samples have a task, of labels [T, B]. [B]"""
    return labels[tasks.index(task)]


def all_of(y: Tensor, task: str) -> Tensor:
    """All samples. [B]"""
    return torch.ones(len(y), dtype=torch.bool)


@dataclass(frozen=True)
class Setting:
    """A training run.

    Attributes:
        method, options: of the aggregator, and further arguments of it.
        steps: of the optimizer.
        micro: how many micro-batches a step has, all but the last collected.
        present: the tasks that a part of the batch has in a step, by the step and the part of SIZE; all without it.
        inputs: whether inputs= names the whole model.
        dtype: of the parameters.
        channels_last: how the parameters lie.
        bucket: the largest message in bytes.
        backward: further arguments of backward().
        scale: of a gradient scaler.
    """

    method: str = "pcgrad"
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    micro: int = 1
    present: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    inputs: bool = False
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    bucket: int = 400
    backward: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    tasks: tuple[str, ...] = TASKS

    def but(self, **changes: Any) -> Setting:
        """The same with changes."""
        return replace(self, **changes)


@dataclass
class Run:
    """What came of it: parameters after the last step, weights [steps, T], which .grad were None, presence and orders."""

    parameters: Tensor
    weights: list[Tensor]
    none: set[str]
    present: list[tuple[bool, ...]]
    grams: list[Tensor | None]
    strides: list[tuple[int, ...]]


def whole_batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs [12, 3, 5, 5] and targets [12]."""
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(SIZE, 3, 5, 5, generator=draw, dtype=torch.float64)
    return x.to(dtype), torch.randn(SIZE, generator=draw, dtype=torch.float64).to(dtype)


def losses(out: dict[str, Tensor], y: Tensor, here: Callable[[str], Tensor]) -> dict[str, Tensor | None]:
    """Each task's loss: the mean over all samples of a part, where those without the task are 0; None where all are.

    Args:
        here: of a task, which samples have it. [B]
    """
    found: dict[str, Tensor | None] = {}
    for k, (task, o) in enumerate(out.items()):
        mask = here(task)
        each = (o - (k - 1) * y).square() if k < 2 else (o * y + 0.3).square()
        found[task] = (each * mask.to(o)).mean() if bool(mask.any()) else None
    return found


def train(rank: int, setting: Setting) -> Run:
    """A run of a rank of the default group."""
    buckets.BUCKET_BYTES = setting.bucket
    return run(setting, rank, dist.get_world_size(), dist.group.WORLD)


def run(setting: Setting, rank: int = 0, world: int = 1, group: Any = None) -> Run:
    """A run on a part of each batch."""
    options = {**setting.options, **({} if group is None else {"process_group": group})}
    surgery = gs.GradientAggregator(setting.method, tasks=setting.tasks, **options)
    net = Net(setting.dtype, setting.tasks)
    if setting.channels_last:
        net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = None if setting.scale is None else torch.amp.GradScaler("cpu", init_scale=setting.scale)
    weights, present, grams = [], [], []
    for step in range(setting.steps):
        optimizer.zero_grad()
        x, y = whole_batch(step, setting.dtype)
        labels = torch.tensor(
            [[t in setting.present.get((step, n), setting.tasks) for n in range(SIZE)] for t in setting.tasks]
        )  # [T, 12]
        for micro, places in enumerate(torch.arange(SIZE).chunk(setting.micro)):
            mine = places.chunk(world)[rank]
            found = losses(net(x[mine]), y[mine], partial(mask_of, setting.tasks, labels[:, mine]))
            arguments = {"shared": net.trunk, "inputs": net if setting.inputs else None, "scaler": scaler}
            alone_without = group is None and all(loss is None for loss in found.values())
            if micro < setting.micro - 1:
                if not alone_without:
                    surgery.collect(found, **arguments)
            elif alone_without:
                surgery.backward(scaler=scaler)
            else:
                surgery.backward(found, **arguments, **setting.backward)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        assert surgery.weights is not None
        statistics = surgery.statistics()
        weights.append(surgery.weights)
        present.append(statistics.present)
        grams.append(None if statistics._gram is None else statistics.gram)
    return Run(
        torch.cat([p.detach().flatten() for p in net.parameters()]),
        weights,
        {name for name, p in net.named_parameters() if p.grad is None},
        present,
        grams,
        [() if p.grad is None else p.grad.stride() for p in net.parameters()],
    )


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The bytes that a rank sends by rings, and the number of messages, by the collective's name."""
    found: Counter[str] = Counter()
    world = dist.get_world_size()
    names = ("reduce_scatter_single", "reduce_scatter_tensor", "all_gather_single", "all_gather_into_tensor", "all_reduce")
    kept = {name: getattr(dist, name) for name in names if hasattr(dist, name)}

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(first: Tensor, *rest: Any, **options: Any) -> Any:
            kind = name.rsplit("_", 1)[0] if name != "all_reduce" else name
            whole = first if kind in ("all_gather", "all_gather_into", "all_reduce") else rest[0]
            found[kind.removesuffix("_into")] += whole.nbytes * (world - 1) // world * (2 if kind == "all_reduce" else 1)
            found[f"messages of {kind.removesuffix('_into')}"] += 1
            return call(first, *rest, **options)

        return counted_call

    try:
        for name, call in kept.items():
            setattr(dist, name, counting(name, call))
        yield found
    finally:
        for name, call in kept.items():
            setattr(dist, name, call)


def train_all(rank: int, settings: Sequence[Setting]) -> list[Run]:
    """Several runs, one after the other."""
    return [train(rank, setting) for setting in settings]


def local(rank: int, whole_model: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """``.grad`` of surgery before averaging, and what this rank finds by itself."""
    world = dist.get_world_size()
    found = []
    for group in (dist.group.WORLD, None):
        net = Net()
        x, y = (part.chunk(world)[rank] for part in whole_batch(0, torch.float64))
        here = losses(net(x), y, partial(all_of, y))
        if whole_model and rank == world - 1:
            here = dict.fromkeys(here)
        if group is not None:
            surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=group, sync="local", seed=3)
            surgery.backward(here, net.trunk if whole_model else None, net if whole_model else None)
        elif any(loss is not None for loss in here.values()):
            surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, seed=3)
            with alone():
                surgery.backward(here, net.trunk if whole_model else None)
        found.append([p.grad for p in net.parameters()])
    return found[0], found[1]


@contextmanager
def alone() -> Iterator[None]:
    """This process does not know of the others."""
    kept, parameter_space.several_processes = parameter_space.several_processes, lambda: False
    try:
        yield
    finally:
        parameter_space.several_processes = kept


def traffic(rank: int, every: int) -> tuple[Counter[str], Counter[str]]:
    """What a first step sends, in which parameters are compared, and a second one; the shared parameters alone get gradients."""
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=dist.group.WORLD, seed=3, every=every)
    net = Net()
    trunk = [p for name, p in net.trunk.named_parameters() if name != "unused"]
    steps = []
    for step in range(2):
        x, y = (part.chunk(dist.get_world_size())[rank] for part in whole_batch(step, torch.float64))
        here = losses(net(x), y, partial(all_of, y))
        with counted() as found:
            surgery.backward(here, trunk, trunk)
        steps.append(found)
    return steps[0], steps[1]


def wrapped(rank: int, how: str) -> tuple[Tensor, list[Tensor]]:
    """Parameters after three steps of a model under DistributedDataParallel, and weights."""
    world = dist.get_world_size()
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=dist.group.WORLD, seed=3)
    net = Net()
    options = {name: True for name in ("find_unused_parameters", "static_graph") if name in how}
    model = DistributedDataParallel(net, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    weights = []
    for step in range(3):
        optimizer.zero_grad()
        x, y = (part.chunk(world)[rank] for part in whole_batch(step, torch.float64))
        with model.no_sync() if "no_sync" in how else nullcontext():
            out = model.module(x) if "module" in how else model(x)
            surgery.backward(losses(out, y, partial(all_of, y)), net.trunk)
        optimizer.step()
        assert surgery.weights is not None
        weights.append(surgery.weights)
    return torch.cat([p.detach().flatten() for p in net.parameters()]), weights


def misuse(rank: int) -> dict[str, str]:
    """What is said to steps that cannot be, and that nothing is written then."""
    said: dict[str, str] = {}

    def aggregator(**options: Any) -> gs.GradientAggregator:
        return gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=dist.group.WORLD, **options)

    def attempt(name: str, step: Callable[[Net, dict[str, Tensor | None]], object], net: Net | None = None) -> None:
        net = net or Net()
        x, y = whole_batch(0, torch.float64)
        found = losses(net(x), y, partial(all_of, y))
        for p in net.parameters():
            p.grad = None
        try:
            step(net, found)
        except (RuntimeError, TypeError, ValueError) as error:
            said[name] = str(error)
        assert all(p.grad is None for p in net.parameters()), name

    experts = [nn.Parameter(torch.full((2,), k)) for k in (1.0, 2.0)]
    attempt("shared", lambda net, found: aggregator().backward(found))
    attempt("memory", lambda net, found: aggregator().backward(found, net.trunk, memory="low"))
    attempt("gram_on", lambda net, found: aggregator().backward(found, net.trunk, gram_on=net.trunk[3]))
    attempt("names", lambda net, found: aggregator(group_by="layer").backward(found, list(net.trunk.parameters())))
    attempt("other", lambda net, found: aggregator().backward(found, net.trunk[: 1 + 3 * rank]))
    attempt("order", lambda net, found: aggregator().backward(found, list(net.trunk.parameters())[:: 1 - 2 * rank]))
    attempt("tasks", lambda net, found: aggregator().backward({**found, "c": found["c"] if rank else None}, net.trunk))
    attempt("alike", lambda net, found: aggregator().backward({"a": (found["a"] or 0) * experts[rank].sum()}, net.trunk))
    attempt("nothing", lambda net, found: aggregator().backward(dict.fromkeys(TASKS), net.trunk, net))
    attempt("unreached", lambda net, found: aggregator().backward(found, [net.unused], net))
    attempt("no group", lambda net, found: gs.GradientAggregator("pcgrad").backward(found))

    surgery, net = aggregator(), Net()
    surgery.backward(losses(net(whole_batch(0, torch.float64)[0]), torch.ones(SIZE), lambda task: torch.ones(SIZE) > 0), net.trunk)
    net.unused.data.fill_(2.0)
    attempt(
        "further",
        lambda net, found: surgery.backward({**found, "a": found["a"] * net.unused.sum()}, net.trunk),  # type: ignore[operator]
        net,
    )
    return said


def not_finite(rank: int) -> tuple[list[bool], list[bool], Tensor]:
    """With a loss that is NaN on one rank: which shared gradients are NaN everywhere, which heads', and the weights."""
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=dist.group.WORLD)
    net = Net()
    x, y = (part.chunk(dist.get_world_size())[rank] for part in whole_batch(0, torch.float64))
    found = losses(net(x), y, partial(all_of, y))
    assert found["b"] is not None
    surgery.backward({**found, "b": found["b"] * (float("nan") if rank else 1.0)}, net.trunk)
    assert surgery.weights is not None
    shared = [bool(p.grad.isnan().all()) for p in net.trunk.parameters() if p.grad is not None]
    return shared, [bool(net.heads[task].weight.grad.isnan().any()) for task in TASKS], surgery.weights


def totals(rank: int) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """``.grad`` of ``total(...).backward()`` and of ``backward``, where a rank has no loss."""
    found = []
    for how in ("total", "backward"):
        surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, process_group=dist.group.WORLD, seed=3)
        net = Net()
        x, y = (part.chunk(dist.get_world_size())[rank] for part in whole_batch(0, torch.float64))
        here: Any = losses(net(x), y, partial(all_of, y)) if rank == 0 else dict.fromkeys(TASKS)
        if how == "total":
            surgery.total(here, net.trunk, net).backward()
        else:
            surgery.backward(here, net.trunk, net)
        found.append([p.grad for p in net.parameters()])
        assert copy.deepcopy(surgery).tasks == surgery.tasks
    return found[0], found[1]
