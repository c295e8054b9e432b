"""What ranks do in tests of surgery on parameters that they hold parts of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

TASKS = ("a", "b", "c")


class Scale(nn.Module):
    """Has a parameter of fewer rows than there are ranks, a frozen one, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8))
        self.frozen = nn.Parameter(torch.randn(8), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight.prod(0) + self.frozen


class Block(nn.Module):
    """Two layers, that tensor parallelism cuts, and a norm, that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 10)
        self.down = nn.Linear(10, 8)
        self.recomputed = False

    def forward(self, z: Tensor) -> Tensor:
        if not self.recomputed:
            return self.inner(z)
        result: Tensor = checkpoint(self.inner, z, use_reentrant=False)
        return result

    def inner(self, z: Tensor) -> Tensor:
        result: Tensor = self.down(torch.tanh(self.up(self.norm(z))))
        return result


class Net(nn.Module):
    """A trunk, and a head a task."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Block(), nn.Tanh(), Scale())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The whole batch of a step: inputs [12, 6] and targets [12, T]."""
    draw = torch.Generator().manual_seed(step)
    return torch.randn(12, 6, generator=draw, dtype=dtype), torch.randn(12, len(TASKS), generator=draw, dtype=dtype)


def losses(out: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    return {task: (out[task][:, 0] - y[:, t]).square().mean() for t, task in enumerate(TASKS)}


# --- layouts: how a model lies on the ranks -----------------------------------------------------------------------------------


def outermost(net: Net) -> DeviceMesh:
    """One wrapper around all, which leaves gathered parameters in the module after the forward pass."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(net, mesh=mesh)
    return mesh


def nested(net: Net, mesh: DeviceMesh | None = None, reshard: bool | None = True) -> DeviceMesh:
    """Wrappers around blocks and one head, in one around all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    for module in (net.trunk[2], net.trunk[4], net.heads["b"]):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(net, mesh=mesh, reshard_after_forward=reshard)
    return mesh


def kept(net: Net) -> DeviceMesh:
    """Parameters stay gathered between forward and backward."""
    return nested(net, reshard=False)


def apart(net: Net) -> DeviceMesh:
    """Trunk and heads are wrapped by themselves: each is an outermost wrapper."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (net.trunk, *net.heads.values()):
        fully_shard(module, mesh=mesh)
    return mesh


def recomputed(net: Net) -> DeviceMesh:
    """A block is checkpointed, inside its wrapper."""
    block = net.trunk[2]
    assert isinstance(block, Block)
    block.recomputed = True
    return nested(net)


def hybrid(net: Net) -> DeviceMesh:
    """Two replicas of two shards."""
    return nested(net, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))


def _cut(net: Net, mesh: DeviceMesh) -> None:
    parallelize_module(net.trunk[2], mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tensor(net: Net) -> DeviceMesh:
    """Two layers are cut; all other parameters stay whole on every rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _cut(net, mesh)
    return mesh


def sequence(net: Net) -> DeviceMesh:
    """Beside them the norm, whose ranks have different rows: its parameters are replicated, their gradients parts of sums."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {
        "2": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(0)),
        "2.norm": SequenceParallel(sequence_dim=0),
        "2.up": ColwiseParallel(input_layouts=Shard(0)),
        "2.down": RowwiseParallel(),
    }
    parallelize_module(net.trunk, mesh, plan)
    return mesh


def both(net: Net) -> DeviceMesh:
    """Tensor parallelism on one dimension of a mesh, FSDP2 on the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    _cut(net, mesh["model"])
    nested(net, mesh["data"])
    return mesh


def part(mesh: DeviceMesh, layout: str) -> tuple[int, int]:
    """Which part of a batch this rank sees, of how many."""
    if layout in ("tensor", "sequence"):
        return 0, 1
    if layout == "both":
        return mesh.get_local_rank("data"), 2
    return dist.get_rank(), dist.get_world_size()


# --- work ---------------------------------------------------------------------------------------------------------------------


def setup(
    layout: str, method: str, options: dict[str, Any]
) -> tuple[Net, gs.GradientAggregator, Callable[[int], tuple[Tensor, Tensor]]]:
    """A model, its aggregator, and this rank's part of the batch of a step; layout "": in one process."""
    net = Net()
    if not layout:
        return net, gs.GradientAggregator(method, tasks=TASKS, **options), batch
    mesh = globals()[layout](net)
    surgery = gs.GradientAggregator(method, tasks=TASKS, process_group=mesh, **options)
    place, parts = part(mesh, layout)

    def mine(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        return x.chunk(parts)[place], y.chunk(parts)[place]

    return net, surgery, mine


def whole(t: Tensor | None) -> Tensor | None:
    """A parameter or gradient from all ranks."""
    if t is None:
        return None
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def train(rank: int, layout: str, method: str, options: dict[str, Any], steps: int = 20) -> tuple[Tensor, Tensor]:
    """Parameters, and the weights of every step."""
    net, surgery, mine = setup(layout, method, options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    weights = []
    for step in range(steps):
        x, y = mine(step)
        optimizer.zero_grad()
        out = net(x)
        surgery.backward(losses(out, y), shared=net.trunk)
        optimizer.step()
        weights.append(surgery.weights)
    parameters = [whole(p) for p in net.parameters()]
    return torch.cat([p.flatten() for p in parameters if p is not None]), torch.stack([w for w in weights if w is not None])


def gradients(rank: int, layout: str, method: str, how: str, **options: Any) -> dict[str, Tensor | None]:
    """``.grad`` of every parameter after a step of surgery that is asked for in some way, and what is known of the step."""
    net, surgery, mine = setup(layout, method, options)
    (x, y), calls = mine(0), list[str]()
    if how == "list":
        shared: Any = list(net.trunk.named_parameters())
    else:
        shared = net.trunk
    hooked = [(name, p) for name, p in net.trunk.named_parameters() if p.requires_grad] if how == "hooks" else []
    for name, p in hooked:
        p.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(name))
    told: dict[str, Any] = losses(net(x), y)
    scaler = None
    if how == "reversed":
        told = dict(reversed(told.items()))
    elif how == "lists":
        told = {task: [0.25 * loss, 0.75 * loss] for task, loss in told.items()}
    elif how == "accumulate":
        surgery.backward(told, shared=net.trunk)
        told = losses(net(mine(1)[0]), mine(1)[1])
    elif how == "retain":
        surgery.backward(told, shared=net.trunk, retain_graph=True)
    elif how == "scaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    elif how == "every":
        surgery.backward(told, shared=net.trunk)
        told = losses(net(mine(1)[0]), mine(1)[1])
    surgery.backward(told, shared=shared, scaler=scaler)
    found = {name: whole(p.grad) for name, p in net.named_parameters()}
    assert sorted(calls) == [name for name, p in sorted(hooked) if p.grad is not None]
    statistics = surgery.statistics()
    return found | {"weights of the step": surgery.weights, "K of the step": None if how == "every" else statistics.gram}


WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("upgrad", "usual", {}),
    ("upgrad", "list", {}),
    ("upgrad", "reversed", {}),
    ("upgrad", "lists", {}),
    ("upgrad", "accumulate", {}),
    ("upgrad", "retain", {}),
    ("cagrad", "scaler", {}),
    ("upgrad", "hooks", {}),
    ("mgda", "every", {"every": 2}),
    ("pcgrad", "groups", {"group_by": "layer", "order": "random"}),
    ("upgrad", "groups", {"group_by": "tensor"}),
    ("mean", "usual", {}),
]


def all_ways(rank: int, layout: str) -> list[dict[str, Tensor | None]]:
    return [gradients(rank, layout, method, how, **options) for method, how, options in WAYS]


def train_all(rank: int, layout: str, methods: dict[str, dict[str, Any]]) -> dict[str, tuple[Tensor, Tensor]]:
    return {method: train(rank, layout, method, options) for method, options in methods.items()}


# --- what is sent -------------------------------------------------------------------------------------------------------------


class Wire(TorchDispatchMode):
    """The collectives of a piece of a program: their names, and the bytes at the larger end."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            self.calls.append((func._schema.name, max((t.nbytes for t in tensors), default=0)))
        return func(*args, **(kwargs or {}))


def sent(rank: int, layout: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The collectives of a step, forward and backward: parameters are gathered for each task again; they stay, for all tasks."""
    net, surgery, mine = setup(layout, "pcgrad", {})
    shared, (x, y) = list(net.trunk.named_parameters()), mine(0)
    wrapped = [module for module in net.modules() if isinstance(module, FSDPModule)]
    found = []
    for stay in (False, True):
        surgery.backward(losses(net(x), y), shared=shared)
        for module in wrapped:
            module.set_reshard_after_backward(not stay, recurse=False)
        with Wire() as wire:
            surgery.backward(losses(net(x), y), shared=shared)
        for module in wrapped:
            module.reshard()
        found.append(wire.calls)
    return found[0], found[1]


# --- what is refused ----------------------------------------------------------------------------------------------------------


def refused(rank: int) -> dict[str, str]:
    """What misuses are told."""
    net = Net()
    mesh = nested(net, reshard=None)  # the outermost wrapper leaves gathered parameters
    shared = list(net.trunk.named_parameters())
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=mesh)
    local = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=mesh, sync="local")
    alone = gs.GradientAggregator("upgrad", tasks=TASKS)
    x, y = batch(0)
    told: dict[str, str] = {}

    def attempt(name: str, call: Callable[..., object], **given: Any) -> None:
        change, told_of = given.pop("change", None), losses(net(x), y)
        try:
            call(change(told_of) if change else told_of, **({"shared": shared} | given))
        except (ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
        else:
            told[name] = "nothing"

    def without_b(own: dict[str, Tensor]) -> dict[str, Any]:
        return {**own, "b": None}

    attempt("sync", local.backward)
    attempt("alone", alone.backward)
    attempt("accumulate", surgery.backward, accumulate=False)
    attempt("memory", surgery.backward, memory="low")
    attempt("passes", surgery.backward, passes="batched")
    attempt("gram_on", surgery.backward, gram_on=shared[:2])
    attempt("inputs", surgery.backward, inputs=shared)
    attempt("collect", surgery.collect)
    attempt("total", surgery.total)
    attempt("absent", surgery.backward, change=without_b)
    attempt("plain", surgery.backward, shared=[*shared, ("other", nn.Parameter(torch.ones(2)))])
    attempt(
        "names",
        gs.GradientAggregator("upgrad", tasks=TASKS, process_group=mesh, group_by="layer").backward,
        shared=[p for _, p in shared],
    )
    attempt("gathered", lambda own, shared: surgery.backward(own, shared=list(net.trunk.parameters())))
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(False, recurse=False)
    attempt("unreduced", surgery.backward)
    told["written"] = str([name for name, p in shared if p.grad is not None])
    return told


def all_gathered(rank: int) -> str:
    """Parameters that are listed where all are gathered, so that none is a DTensor."""
    net, surgery, mine = setup("kept", "upgrad", {})
    x, y = mine(0)
    own = losses(net(x), y)
    try:
        surgery.backward(own, shared=list(net.trunk.named_parameters()))
    except ValueError as error:
        return str(error)
    return "nothing"


def outside(rank: int) -> str:
    """A group that is not of all ranks which hold parts."""
    net = Net()
    mesh = both(net)
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=mesh["data"])
    x, y = batch(0)
    try:
        surgery.backward(losses(net(x), y), shared=net.trunk)
    except ValueError as error:
        return str(error)
    return "nothing"


def divided_under_tensor_parallelism(rank: int) -> str:
    """Tensor parallelism on one dimension of a mesh, and a batch that is divided on the other, where nobody reduces."""
    net = Net()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    _cut(net, mesh["model"])
    surgery = gs.GradientAggregator("upgrad", tasks=TASKS, process_group=mesh)
    x, y = (part.chunk(2)[mesh.get_local_rank("data")] for part in batch(0))
    try:
        surgery.backward(losses(net(x), y), shared=net.trunk)
    except ValueError as error:
        assert all(p.grad is None for p in net.parameters())
        return str(error)
    return "nothing"


def absent_under_tensor_parallelism(rank: int, layout: str) -> dict[str, Tensor | None]:
    """A step without one task, and one with a single task."""
    net, surgery, mine = setup(layout, "upgrad", {})
    x, y = mine(0)
    own = losses(net(x), y)
    surgery.backward({"a": own["a"], "c": own["c"]}, shared=net.trunk)
    weights = surgery.weights
    own = losses(net(x), y)
    surgery.backward({"b": own["b"]}, shared=net.trunk)
    return {name: whole(p.grad) for name, p in net.named_parameters()} | {"weights of the step": weights}


def different(rank: int) -> str:
    """Ranks that have losses of different tasks, with TORCH_DISTRIBUTED_DEBUG=DETAIL."""
    net, surgery, mine = setup("nested", "upgrad", {})
    x, y = mine(0)
    own: dict[str, Any] = losses(net(x), y)
    if rank == 1:
        own["b"] = None
    try:
        surgery.backward(own, shared=net.trunk)
    except ValueError as error:
        return str(error)
    return "nothing"
