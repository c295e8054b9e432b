"""What one call in parameter space is about: the losses of one batch, and the gradients of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .graph import Graph, edges_of
from .parameters import Parameter, added, check_operable
from .passes import Flow, Rows


@dataclass
class Batch:
    """The losses of the tasks present in one batch.

    Attributes:
        names: of the tasks. [T]
        losses: of each task, one or more. [T]
        shared: the parameters to operate on; None: those that two tasks reach.
        wanted: the leaves that get gradients, by id; None: all.
        scale: by which the losses are multiplied, float64; None: 1. []
    """

    names: list[str]
    losses: list[list[Tensor]]
    shared: list[Parameter] | None
    wanted: set[int] | None
    scale: Tensor | None = None

    def in_order(self, names: Sequence[str]) -> Batch:
        """The same, task by task in the order of some names, those that are present."""
        order = sorted(range(len(self.names)), key=lambda t: names.index(self.names[t]))
        return replace(self, names=[self.names[t] for t in order], losses=[self.losses[t] for t in order])

    def graph(self) -> Graph:
        """The autograd graph below the losses.

        Raises:
            ValueError: which parameters the tasks share cannot be seen, and was not told.
        """
        graph = Graph([edges_of(losses) for losses in self.losses], self.wanted)
        if graph.fused and self.shared is None:
            raise ValueError(
                "shared: expected the parameters that the tasks share, found None: one compiled function has several tasks' "
                "outputs, and torch reports that each depends on all of its parameters, the heads' included. Pass the trunk."
            )
        return graph

    def flows(self) -> list[Flow]:
        """The gradient of the scaled losses at each loss. [T]"""
        flows: list[Flow] = []
        for losses in self.losses:
            flow: Flow = {}
            for edge, one in zip(edges_of(losses), self.seeds(losses), strict=True):
                flow[edge] = flow[edge] + one if edge in flow else one
            flows.append(flow)
        return flows

    def seeds(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of the scaled losses at each of some losses."""
        return [torch.ones_like(loss) if self.scale is None else self.scale.to(loss).expand_as(loss) for loss in losses]

    @property
    def values(self) -> dict[str, Tensor]:
        """Each task's loss, without graph."""
        sums = (torch.stack([loss.detach().reshape(()) for loss in losses]).sum() for losses in self.losses)
        return dict(zip(self.names, sums, strict=True))


@dataclass(frozen=True)
class Collected:
    """Gradients of one batch or more.

    Attributes:
        leaves: by id, in the order in which they were reached.
        rows: each task's gradient at a leaf, by the leaf's id and the task's name.
        losses: the value of each task's loss, summed over the batches.
        shared: the parameters to operate on, as far as some batch named any.
        scale: by which all are multiplied, float64; None: 1. []
    """

    leaves: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    shared: list[Parameter] | None = None
    scale: Tensor | None = None

    def plus(self, batch: Batch, leaves: Mapping[int, Tensor], rows: Rows) -> Collected:
        """With one more batch's gradients; what a task has already is added to."""
        first = not self.rows
        factor = None if first else ratio(self.scale, batch.scale)
        merged = {key: dict(held) for key, held in self.rows.items()}
        for key, of_tasks in rows.items():
            held = merged.setdefault(key, {})
            for t, gradient in of_tasks.items():
                name = batch.names[t]
                alike = gradient if factor is None else gradient * factor.to(gradient)
                held[name] = added(held[name], alike) if name in held else alike
        losses = dict(self.losses)
        for name, value in batch.values.items():
            losses[name] = losses[name] + value if name in losses else value
        shared = self.shared
        if batch.shared is not None:
            known = {id(p.tensor) for p in shared or []}
            shared = [*(shared or []), *(p for p in batch.shared if id(p.tensor) not in known)]
        scale = batch.scale if first else self.scale
        return Collected(self.leaves | {key: leaves[key] for key in rows}, merged, losses, shared, scale)

    @property
    def tasks(self) -> set[str]:
        """The tasks that have a gradient anywhere."""
        return {name for held in self.rows.values() for name in held}

    def operated(self) -> list[Parameter]:
        """The parameters that the tasks share: those named, as far as some task reaches them, or those that two tasks reach.

        Raises:
            TypeError: one of a dtype that is not floating.
        """
        if self.shared is not None:
            return [p for p in self.shared if self.rows.get(id(p.tensor))]
        found = [self.leaves[key] for key, held in self.rows.items() if len(held) > 1]
        check_operable(found)
        return [Parameter(leaf, f"[{k}]") for k, leaf in enumerate(found)]


def safe(scale: Tensor) -> Tensor:
    """What to divide by, so that gradients that were multiplied by 0 are 0."""
    return torch.where(scale == 0, 1.0, scale)


def ratio(wanted: Tensor | None, found: Tensor | None) -> Tensor | None:
    """What to multiply gradients of one scale with for another; None where the scales are known to be the same. []"""
    if wanted is found:
        return None
    if found is None:
        return wanted
    return safe(found).reciprocal() if wanted is None else wanted / safe(found)


def reaching(graph: Graph, shared: Sequence[Tensor], tasks: int) -> list[bool]:
    """Which tasks reach some of the shared parameters. [T]"""
    bits = 0
    for leaf in shared:
        bits |= graph.reach[id(leaf)]
    return [bool(bits >> t & 1) for t in range(tasks)]
