"""Form C where every rank holds a part of the shared parameters: FSDP2 (``fully_shard``), HSDP, tensor parallelism, or two of them.

Such parameters are DTensors, and the wrappers bring their gradients: FSDP2 reduce-scatters them in its hooks, averaged over the
ranks that divide the batch, while its backward pass goes on; tensor parallelism makes them where they belong. So every task has an
ordinary backward pass, and its gradient is what that leaves in ``.grad``. The coordinates of a gradient lie apart, and K adds up:

    K = Σ_ranks Σ_p K_p,rank / c_p

where c_p is on how many ranks a coordinate of parameter p is: all that do not shard it, such as HSDP's replicas, and tensor
parallelism's norms and biases. One all-reduce of T(T+1)/2 doubles; and the combination is of shards, where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from gradsurgery.capture.batch import Batch
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.graph import edges_of, reaches
from gradsurgery.capture.parameters import Parameter

from .gathered import check_not_gathered
from .ranks import Ranks


def check_step(batch: Batch, tasks: Sequence[str], ranks: Ranks) -> None:
    """Raises where the backward passes could not be the same on all ranks, or would not bring all gradients.

    FSDP2 talks in every pass, and a rank without the loss of a task cannot know which modules the others' pass goes through. So it
    is refused, at once and where it is seen: that costs no message. With ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` ranks compare names.

    Args:
        batch: this rank's.
        tasks: those declared.
        ranks: that take the step.
    """
    if ranks.checks:
        ranks.agree({"losses": batch.names}, "backward")
    shared = batch.shared or []
    absent = [name for name in tasks if name not in batch.names]
    plain = [p.name for p in shared if not isinstance(p.tensor, DTensor)]
    sharded = [p.tensor for p in shared if isinstance(p.tensor, DTensor)]
    everywhere = any(tensor.device_mesh.size() >= ranks.size for tensor in sharded)
    if everywhere and not (absent or plain):
        return
    if reaches([edge for losses in batch.losses for edge in edges_of(losses)], sharded):
        # Tensor parallelism alone: every rank has the same batch, and whole parameters are the same everywhere.
        if not everywhere:
            raise ValueError(
                f"process_group: expected the mesh of tensor parallelism, all of whose ranks have the same batch, found the ranks "
                f"{ranks.members}, and no parameter that lies on all of them: nobody would average its gradients over the others. "
                "Divide the batch by fully_shard on the mesh's other dimension."
            )
        return
    if absent:
        raise ValueError(
            f"losses: expected one of every task on every rank, as FSDP gathers parameters and reduces gradients in each task's "
            f"backward pass; found none of {', '.join(absent)}. For a task without a label in this rank's batch give a loss of 0 "
            "that depends on its output, such as 0 * head(features).sum()."
        )
    if plain:
        raise ValueError(
            f"shared: expected parameters as fully_shard left them, DTensors, found plain tensors ({', '.join(plain[:3])}). Either "
            "they were listed between forward and backward, where FSDP has gathered them: pass the module, or list them once, "
            "before the forward pass; or fully_shard was told to ignore them, and nobody averages their gradients over the ranks."
        )


@contextmanager
def put_aside(shared: Sequence[Parameter]) -> Iterator[None]:
    """Without what is in ``.grad``, and without hooks for when something comes there; both are back at the end."""
    leaves = [p.tensor for p in shared]
    before = [None if leaf.grad is None else _placed(leaf.grad, leaf) for leaf in leaves]
    hooks = [(held, dict(held)) for leaf in leaves if (held := leaf._post_accumulate_grad_hooks)]
    for leaf in leaves:
        leaf.grad = None
    for held, _ in hooks:
        held.clear()
    try:
        yield
    finally:
        for held, kept in hooks:
            held.update(kept)
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad


@dataclass(frozen=True)
class Shards:
    """The gradients of T tasks at the shared parameters that some task reaches, as far as this rank has them.

    Attributes:
        parameters: those. [P]
        given: this rank's parts of their gradients, and on how many ranks each is.
        targets: where surgery writes: over the last task's. [P]
        combined: the parameters, and the gradients whose parts are ``targets``. [P]
    """

    parameters: list[Parameter]
    given: TaskGradients
    targets: list[Tensor]
    combined: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, batch: Batch, retain_graph: bool, ranks: Ranks) -> Shards:
        """From a backward pass a task; leaves that are not shared get their sum, as ever.

        Raises:
            ValueError: no gradient came, or to the ranks of another group.
        """
        rows = _rows(batch, retain_graph)
        columns = {p: column for p, column in enumerate(zip(*rows, strict=True)) if any(g is not None for g in column)}
        assert batch.shared is not None
        parameters = [batch.shared[p] for p in columns]
        last = [next(g for g in reversed(column) if g is not None) for column in columns.values()]
        with torch.no_grad():
            parts = [[None if g is None else _here(g) for g in column] for column in columns.values()]
            targets = [_here(g) for g in last]
        entries = [part for row in zip(*parts, strict=True) for part in row]
        given = TaskGradients(entries, len(rows), copies=_copies(parameters, ranks))
        return cls(parameters, given, targets, list(zip((p.tensor for p in parameters), last, strict=True)))


def _rows(batch: Batch, retain_graph: bool) -> list[list[Tensor | None]]:
    """Each task's gradients at the shared parameters, as the wrappers' hooks reduce them. [T][P]"""
    assert batch.shared is not None
    leaves = [p.tensor for p in batch.shared]
    rows: list[list[Tensor | None]] = []
    for t, losses in enumerate(batch.losses):
        again = retain_graph or t + 1 < len(batch.losses)
        torch.autograd.backward(losses, batch.seeds(losses), retain_graph=again)
        rows.append([None if leaf.grad is None else _placed(leaf.grad, leaf) for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    check_not_gathered(batch.shared)
    if all(gradient is None for row in rows for gradient in row):
        raise ValueError(
            f"shared: expected parameters that get a gradient from some loss, found {len(leaves)} that get none. Was the trunk's "
            "output detached, are they another model's, or does set_requires_gradient_sync(False) keep FSDP from reducing?"
        )
    return rows


def _copies(parameters: Sequence[Parameter], ranks: Ranks) -> list[int]:
    """On how many of the ranks each coordinate of a parameter is. [P]"""
    members, copies, known = set(ranks.members), list[int](), set[DeviceMesh]()
    for p in parameters:
        if not isinstance(p.tensor, DTensor):
            copies.append(ranks.size)
            continue
        mesh = p.tensor.device_mesh
        if mesh not in known and (outside := set(mesh.mesh.flatten().tolist()) - members):
            raise ValueError(
                f"process_group: expected all ranks that hold a part of the shared parameters, found {ranks.members}, and "
                f"{p.name} on {sorted(outside)}, too. Pass the whole mesh, with all its dimensions, or group.WORLD."
            )
        known.add(mesh)
        sharding = [mesh.size(d) for d, placement in enumerate(p.tensor.placements) if not placement.is_replicate()]
        copies.append(ranks.size // prod(sharding))
    return copies


def _placed(gradient: Tensor, leaf: Tensor) -> Tensor:
    """A gradient as its parameter lies: one whose parts are still to be added up over ranks is reduced."""
    if not isinstance(gradient, DTensor) or not isinstance(leaf, DTensor) or gradient.placements == leaf.placements:
        return gradient
    return gradient.redistribute(leaf.device_mesh, leaf.placements)


def _here(gradient: Tensor) -> Tensor:
    """This rank's part of a gradient, which has arrived."""
    part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return part.wait() if isinstance(part, AsyncCollectiveTensor) else part
