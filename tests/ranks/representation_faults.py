"""What ranks do in tests of faults: end, hang, compute NaN, or differ in what they were given."""

from __future__ import annotations

import copy
import os
import pickle
import time
from typing import Any

import torch
import torch.distributed as dist
from ranks.representation import TASKS, Case, Net, aggregator, batch
from ranks.said import said
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

EXIT_STATUS = 7


def _step(net: Any, surgery: gs.GradientAggregator, rank: int, step: int, factor: float = 1.0) -> None:
    x, y = (part.chunk(dist.get_world_size())[rank] for part in batch(step, torch.float64))
    losses = [(o[:, 0] - y[:, t]).square().mean() * factor for t, o in enumerate(net(x, list(range(TASKS))))]
    torch.stack(losses).sum().backward()


def broken(rank: int, fault: str) -> None:
    """Rank 1 ends, or hangs, or raises, in step 2."""
    surgery = aggregator(Case(), dist.group.WORLD)
    model = DistributedDataParallel(Net(surgery, Case()), broadcast_buffers=False)  # whose own message would come first
    for step in range(4):
        if step == 2 and rank == 1:
            if fault == "ends":
                os._exit(EXIT_STATUS)
            if fault == "raises":
                raise FileNotFoundError("no such image")
            time.sleep(7.0)
            os._exit(EXIT_STATUS)
        _step(model, surgery, rank, step)


def never_built(rank: int) -> None:
    """Rank 1 has an option that its method refuses, and never comes to the others."""
    if rank == 1:
        gs.GradientAggregator("cagrad", c=-1.0, tasks=TASKS, process_group=dist.group.WORLD)
    gs.GradientAggregator("cagrad", tasks=TASKS, process_group=dist.group.WORLD)


def not_a_number(rank: int, method: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """w and the method's memory after each of three steps, in the second of which rank 1's loss is NaN."""
    surgery = aggregator(Case(method), dist.group.WORLD)
    net = Net(surgery, Case())
    weights, memory = [], []
    for step in range(3):
        _step(net, surgery, rank, step, float("nan") if step == 1 and rank == 1 else 1.0)
        assert surgery.weights is not None
        weights.append(surgery.weights)
        memory.append({name: buffer.clone() for name, buffer in surgery.named_buffers()})
    return weights, memory


def not_a_number_alone(method: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    surgery = aggregator(Case(method), None)
    net = Net(surgery, Case())
    weights, memory = [], []
    for step in range(3):
        x, y = batch(step, torch.float64)
        bad = float("nan") if step == 1 else 1.0
        losses = [(o[:, 0] - y[:, t]).square().mean() * bad for t, o in enumerate(net(x, list(range(TASKS))))]
        torch.stack(losses).sum().backward()
        assert surgery.weights is not None
        weights.append(surgery.weights)
        memory.append({name: buffer.clone() for name, buffer in surgery.named_buffers()})
    return weights, memory


def planted(rank: int) -> str:
    """What is said where rank 1 comes to other weights."""
    surgery = aggregator(Case(), dist.group.WORLD)
    net = Net(surgery, Case())
    _step(net, surgery, rank, 0)
    if rank == 1:
        surgery.method = gs.GradientAggregator("mean").method
    return said(lambda: _step(net, surgery, rank, 1))


# --- what is compared when an aggregator is built -------------------------------------------------------------------------------


def _by_first(name: str) -> str:
    return name[0]


def _by_last(name: str) -> str:
    return name[-1]


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "order of tasks": ({"tasks": ("a", "b")}, {"tasks": ("b", "a")}),
    "number of tasks": ({"tasks": 2}, {"tasks": 3}),
    "method": ({"method": "pcgrad"}, {"method": "upgrad"}),
    "option": ({"method": "cagrad", "c": 0.5}, {"method": "cagrad", "c": 0.4}),
    "option of numbers": ({"method": "upgrad", "pref": [0.5, 0.5]}, {"method": "upgrad", "pref": [0.4, 0.6]}),
    "seed": ({"seed": 1}, {"seed": 2}),
    "group_by": ({"group_by": "tensor"}, {"group_by": "layer"}),
    "function": ({"group_by": _by_first}, {"group_by": _by_last}),
    "every": ({"every": 1}, {"every": 2}),
    "sync": ({"sync": "global"}, {"sync": "local"}),
    "two": ({"seed": 1, "every": 1}, {"seed": 2, "every": 2}),
}

SAME: dict[str, dict[str, Any]] = {
    "function": {"group_by": _by_first},
    "lambda": {"group_by": lambda name: name[0]},
    "tensor": {"method": "upgrad", "pref": torch.tensor([0.5, 0.5])},
    "method in a method": {"method": "crmogm", "inner": "cagrad"},
    "history": {"history": 3},
}

REFUSED: dict[str, dict[str, Any]] = {
    "undeclared": {"tasks": None},
    "coordinatewise": {"method": "graddrop"},
    "buffered": {"method": "moco"},
    "two batches": {"method": "modo"},
    "samples": {"group_by": "sample"},
    "no group": {"process_group": "world"},
    "sync": {"sync": "everywhere"},
}


def _build(**arguments: Any) -> gs.GradientAggregator:
    return gs.GradientAggregator(**{"method": "pcgrad", "tasks": 2, "process_group": dist.group.WORLD} | arguments)


def disagreements(rank: int) -> dict[str, str]:
    return {name: said(lambda given=given: _build(**given[rank])) for name, given in DIFFERENT.items()}


def agreements(rank: int) -> dict[str, str]:
    return {name: said(lambda given=given: _build(**given)) for name, given in SAME.items()}


def refusals(rank: int) -> dict[str, str]:
    return {name: said(lambda given=given: _build(**given)) for name, given in REFUSED.items()}


def outside(rank: int) -> tuple[str, str, str]:
    """What is said by a group of rank 0 alone, by a mesh of it, and by the two ranks in turned order."""
    of_first = dist.new_group([0])
    mesh = DeviceMesh("cpu", torch.tensor([0]), mesh_dim_names=("data",))
    turned = DeviceMesh("cpu", torch.tensor([1, 0]))
    return (
        said(lambda: _build(process_group=of_first)),
        said(lambda: _build(process_group=mesh)),
        said(lambda: _build(process_group=turned, seed=rank)),
    )


def half(rank: int) -> tuple[Tensor, Tensor]:
    """w of two pairs of four ranks, each of which has a step of its own; and of the pair's K."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("model", "data"))
    surgery = _build(process_group=mesh["data"])
    draw = torch.Generator().manual_seed(rank)
    grads = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    surgery.aggregate(grads)
    assert surgery.weights is not None
    return surgery.weights, surgery.statistics().gram


def copies(rank: int) -> tuple[str, str, Tensor, Tensor]:
    """What pickling says; w of an aggregator and of its copy, whose steps are of the same ranks."""
    surgery = _build()
    twin = copy.deepcopy(surgery)
    grads = torch.randn(2, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    surgery.aggregate(grads)
    twin.aggregate(grads)
    assert surgery.weights is not None
    assert twin.weights is not None
    loaded = _build()
    loaded.load_state_dict(surgery.state_dict())
    return said(lambda: pickle.dumps(surgery)), said(lambda: loaded.aggregate(grads)), surgery.weights, twin.weights


def taking_part(rank: int) -> tuple[str, ...]:
    """What is said where a step without a task cannot be one."""
    alone = gs.GradientAggregator("pcgrad", tasks=2)
    grouped = _build(group_by="tensor")
    waiting = _build()
    features = torch.randn(3, 4, requires_grad=True)
    waiting.detach(features).sum().backward()
    local = _build(sync="local")
    dropped = _build()
    dropped.detach(features)

    def drops() -> None:
        dropped.take_part()
        dropped.detach(features)

    return tuple(said(action) for action in (alone.take_part, grouped.take_part, waiting.take_part, local.take_part, drops))
