"""What ranks do in tests of surgery on parameters that they hold parts of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

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

    def forward(self, z: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(z))))


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
    _cut(net, mesh)
    parallelize_module(net.trunk[2], mesh, {"norm": SequenceParallel(sequence_dim=0)})
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


def setup(layout: str, method: str, options: dict[str, Any]) -> tuple[Net, gs.GradientAggregator, Callable[[int], tuple[Tensor, Tensor]]]:
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


def train(rank: int, layout: str, method: str, options: dict[str, Any], steps: int = 20, named: bool = False) -> tuple[Tensor, Tensor]:
    """Parameters, and the weights of every step."""
    net, surgery, mine = setup(layout, method, options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    shared: Any = list(net.trunk.named_parameters()) if named else net.trunk
    weights = []
    for step in range(steps):
        x, y = mine(step)
        optimizer.zero_grad()
        out = net(x)
        surgery.backward(losses(out, y), shared=shared)
        optimizer.step()
        weights.append(surgery.weights)
    parameters = [whole(p) for p in net.parameters()]
    return torch.cat([p.flatten() for p in parameters if p is not None]), torch.stack([w.flatten() for w in weights if w is not None])


def gradients(rank: int, layout: str, method: str, options: dict[str, Any], how: str) -> dict[str, Tensor | None]:
    """``.grad`` of every parameter after one step of surgery, asked for in some way."""
    net, surgery, mine = setup(layout, method, options)
    x, y = mine(0)
    told = losses(net(x), y)
    calls: list[str] = []
    if how == "reversed":
        told = dict(reversed(told.items()))
    elif how == "lists":
        told = {task: [0.25 * loss, 0.75 * loss] for task, loss in told.items()}  # type: ignore[misc]
    elif how == "accumulate":
        surgery.backward(told, shared=net.trunk)
        told = losses(net(mine(1)[0]), mine(1)[1])
    elif how == "retain":
        surgery.backward(told, shared=net.trunk, retain_graph=True)
    elif how == "hooks":
        for name, p in net.trunk.named_parameters() if layout in ("", "tensor", "sequence") else _sharded(net.trunk):
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(name))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if how == "scaler" else None
    surgery.backward(told, shared=net.trunk, scaler=scaler)
    found = {name: whole(p.grad) for name, p in net.named_parameters()}
    assert len(calls) == len(set(calls)), calls
    if how == "hooks":
        assert len(calls) == sum(p.grad is not None for p in net.trunk.parameters())
    return found | {"norm": surgery.statistics().norm * torch.ones(1), "gram": surgery.statistics().gram}


def _sharded(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    module.state_dict()
    return list(module.named_parameters())


def count(rank: int, layout: str, keep: bool) -> dict[str, int]:
    """Messages of forward and backward of a step, by kind, and the bytes that this rank puts in or takes out of the larger end."""
    net, surgery, mine = setup(layout, "pcgrad", {})
    shared = list(net.trunk.named_parameters())
    x, y = mine(0)
    surgery.backward(losses(net(x), y), shared=shared)
    traffic: dict[str, int] = {}
    with CommDebugMode() as counted:
        surgery.backward(losses(net(x), y), shared=shared)
    for op, times in counted.get_comm_counts().items():
        traffic[str(op)] = times
    return traffic
