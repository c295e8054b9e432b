"""K from T backward passes, which go only as far as K needs them, and one weighted pass for the gradients that were not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.column import Column, entries
from gradsurgery.capture.ghost import Ghost, ghosts_in
from gradsurgery.capture.graph import Graph, Region
from gradsurgery.capture.parameters import Parameter, check_operable, check_shared, own, plain_sum
from gradsurgery.capture.passes import Flow, Passes, Rows, through_all
from gradsurgery.spare import Spare

SLICES = 32
"""Into about how many parts of equal size the shared parameters are cut, where only one part at a time has T gradients."""

PARTS = 8
"""Into about how many parts at most the parameters are taken where the graph cannot be cut, as each takes a pass a task."""

TOP = 16
"""A parameter near the losses is not kept while the passes go on, if it has at least this part of what the tasks share."""


AGAIN = (2, 3)
"""For which part of the tasks, rounded down: the passes take time, and the others' gradients memory."""


@dataclass
class _Again:
    """The parameter whose gradients come a second time, the region in which it is used, and where the passes there begin. [T]"""

    region: Region
    leaf: Tensor
    flows: list[Flow]


class OnePass:
    """T backward passes as far as weights need them, and then one for all of what is left.

    Args:
        graph: below the losses.
        flows: where each task's pass begins. [T]
        shared: the parameters to operate on, by id.
        retain_graph: keep the graph for another backward pass.

    Attributes:
        parts: whether the tasks part at a place where the graph can be cut.
        rows: the gradients taken so far.
    """

    def __init__(self, graph: Graph, flows: Sequence[Flow], shared: dict[int, Tensor], retain_graph: bool) -> None:
        self.rows: Rows = {}
        self._graph, self._shared, self._retain = graph, shared, retain_graph
        self._passes = Passes(graph, flows)
        self._cuts = graph.narrow()
        self.parts = graph.private_cut in self._cuts
        self._private = [graph.private_cut] if self.parts else []
        self._rest: list[Tensor] = []  # the leaves whose gradients the weighted pass brings
        self._again: _Again | None = None
        self._ghosts: dict[int, Ghost] = {}

    def gram(self, spare: Spare) -> Tensor:
        """K, from all gradients. [T, T]

        A backward pass takes most memory where it ends: there are the gradients of all layers, and what the first layers saved.
        Most of the T gradients of a large parameter near the losses are not there: they come again, by short passes, in ``finish``.

        Args:
            spare: gradients of an earlier step, whose memory those of this one take.
        """
        self._ghosts = ghosts_in(self._graph, self._shared)
        top, regions = self._with_top()
        T = len(self._passes.flows)
        K = self._nothing()
        for region in regions:
            ghosts = self._ghosts_of(region)
            held_back = top if region is regions[len(self._private)] else None
            if held_back is not None:
                away = range(T * AGAIN[0] // AGAIN[1])
                self._again = _Again(
                    region, held_back, [dict(flow) if t in away else {} for t, flow in enumerate(self._passes.flows)]
                )
                spare.make_room(T * held_back.nbytes)
            before = partial(spare.before_pass, region.leaves)
            rows = self._passes.through(region, retain_graph=self._retain or held_back is not None, ghosts=ghosts, before=before)
            K += self._gram(rows, ghosts, self._shared)
            if held_back is not None:
                for t in away:
                    rows[id(held_back)].pop(t, None)
            self.rows |= rows
        return K

    def _with_top(self) -> tuple[Tensor | None, list[Region]]:
        """The first large one of the shared parameters, if the graph can be cut above and below it, and the regions.

        One with a hook of its own is left where it is: a hook may count how often it is called. So is one below, or in, a
        checkpointed block, which its second passes would recompute.
        """
        least = sum(leaf.nbytes for leaf in self._shared.values()) / TOP
        passed = 0
        uses = [(place, leaf) for place, leaf in self._graph.first_uses() if id(leaf) in self._shared]
        for start, cut in pairwise([cut for cut in self._cuts if cut >= self._graph.private_cut] if self.parts else []):
            between = [leaf for place, leaf in uses if start < place <= cut]
            formed = (leaf for leaf in between if id(leaf) not in self._ghosts)
            largest = max(formed, key=lambda leaf: leaf.nbytes, default=None)  # the uppermost of them
            if largest is not None and largest.nbytes >= least:
                regions = self._graph.regions([*self._private, cut])
                stays = largest._backward_hooks or regions[1].blocks
                return None if stays else largest, regions
            passed += sum(leaf.nbytes for leaf in between)
            if passed >= least:  # further down the passes would not be short
                break
        return None, self._graph.regions(self._private)

    def to_where_tasks_part(self) -> None:
        """Takes the heads' gradients, and all others, too, where there is no place to stop at."""
        heads, *trunk = self._graph.regions(self._private or self._graph.where_tasks_part())
        self.rows |= self._passes.through(heads, retain_graph=self._retain)
        self._rest = [leaf for region in trunk for leaf in region.leaves]

    def gram_on(self, measured: Sequence[Tensor], spare: Spare) -> Tensor:
        """K of some of the shared parameters; the passes end at the next place after them where the graph can be cut. [T, T]"""
        self._ghosts = ghosts_in(self._graph, self._shared)
        place = self._graph.place_after(measured)
        beyond = [cut for cut in self._cuts if cut >= place][:1]
        regions = self._graph.regions(sorted({*self._private, *beyond}))
        if beyond:
            self._rest = regions.pop().leaves
        reached = {id(leaf) for region in regions for leaf in region.leaves}
        self._ghosts = {key: ghost for key, ghost in self._ghosts.items() if key in reached}
        K = self._nothing()
        on = {id(leaf): leaf for leaf in measured}
        for region in regions:
            ghosts = self._ghosts_of(region)
            before = partial(spare.before_pass, region.leaves)
            rows = self._passes.through(region, retain_graph=self._retain, ghosts=ghosts, before=before)
            K += self._gram(rows, ghosts, on)
            self.rows |= rows
        return K

    def gram_without_rows(self) -> Tensor:
        """K of the shared parameters, from a few of their gradients at a time; the passes are then where the tasks part. [T, T]"""
        graph = self._graph
        found = ghosts_in(graph, self._shared).items()
        self._ghosts = {key: ghost for key, ghost in found if ghost.nbytes * PARTS <= ghost.leaf.nbytes}
        largest = sum(leaf.nbytes for leaf in self._shared.values()) // SLICES
        regions = graph.regions(graph.slices(self._cuts, largest))
        again = [] if self.parts and not any(id(leaf) in self._shared for leaf in regions[0].leaves) else regions[:1]
        start = [dict(flow) for flow in self._passes.flows]
        K = self._nothing()
        for k, region in enumerate(regions):
            if k == 1 and not again:
                start = [dict(flow) for flow in self._passes.flows]
            whole = self._retain or k > 0 or bool(again)
            ghosts = self._ghosts_of(region)
            *before, final = self._parts(region, largest)
            for part in [*before, final]:
                more = part is not final
                met = [] if more else ghosts
                rows = self._passes.through(region, retain_graph=whole or more, leaves=part, stay=more, ghosts=met)
                K += self._gram(rows, met, self._shared)
                self.rows |= {key: held for key, held in rows.items() if key not in self._shared}
            for ghost in ghosts:  # the weighted pass brings the weights' gradients
                del self._ghosts[id(ghost.leaf)]
        self._passes.flows = start
        self._rest = list(self._shared.values())
        return K

    def _parts(self, region: Region, largest: int) -> list[list[Tensor]]:
        """A region's leaves in parts of about so many bytes of gradients of shared parameters; the last one has the others, too.

        Each part is a pass a task through the region: at most ``PARTS``, of a graph that cannot be cut; and one alone through a
        checkpointed block, which each recomputes.
        """
        if region.one_block:
            return [region.leaves]
        spared = {id(leaf) for ghost in self._ghosts.values() for leaf in (ghost.leaf, ghost.bias)}
        formed = [leaf for leaf in region.leaves if id(leaf) in self._shared and id(leaf) not in spared]
        largest = max(largest, sum(leaf.nbytes for leaf in formed) // PARTS)
        parts: list[list[Tensor]] = [[]]
        room = largest
        for leaf in formed:
            if parts[-1] and room < leaf.nbytes:
                parts.append([])
                room = largest
            parts[-1].append(leaf)
            room -= leaf.nbytes
        parts[-1] += [leaf for leaf in region.leaves if id(leaf) not in self._shared or id(leaf) in spared]
        return parts

    def _ghosts_of(self, region: Region) -> list[Ghost]:
        """The ghosts in a region; those that a cut parts from their weights are none any more."""
        found = [self._ghosts[id(leaf)] for leaf in region.leaves if id(leaf) in self._ghosts]
        for ghost in found:
            if ghost.edge[0] not in region.nodes:
                del self._ghosts[id(ghost.leaf)]
        return [ghost for ghost in found if ghost.edge[0] in region.nodes]

    def _nothing(self) -> Tensor:
        """K of no gradients. [T, T]"""
        T = len(self._passes.flows)
        return torch.zeros(T, T, dtype=torch.float64, device=next(iter(self._shared.values())).device)

    def _gram(self, rows: Rows, ghosts: Sequence[Ghost], measured: Mapping[int, Tensor]) -> Tensor:
        """K of some rows and ghosts, as far as they are to be measured. [T, T]"""
        T = len(self._passes.flows)
        K = self._nothing()
        leaves = [measured[key] for key, held in rows.items() if key in measured and held]
        if leaves:
            K += _gram_of(leaves, rows, T)
        for ghost in ghosts:
            if id(ghost.leaf) in measured and ghost.arrived:
                K += ghost.gram(T)
        return K

    @property
    def rows_to_spare(self) -> Rows:
        """The gradients whose memory can serve the next step: all that are there while the passes go on."""
        return {key: held for key, held in self.rows.items() if self._again is None or key != id(self._again.leaf)}

    @torch.no_grad()
    def finish(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each leaf and its gradient: sum_t w_t g_t where it is shared, sum_t g_t where it is not.

        Args:
            weights: w [T], float64 on the gradients' device.
        """
        if self._again is not None:
            leaf, self._passes.flows = self._again.leaf, self._again.flows
            found = self._passes.through(self._again.region, retain_graph=self._retain, leaves=[leaf], stay=True)
            self.rows[id(leaf)] |= found[id(leaf)]
            self._passes.flows = [{} for _ in self._passes.flows]
        leaves, flows, T = self._graph.leaves, self._passes.flows, len(self._passes.flows)
        written = []
        taken = [key for key in self.rows if key in self._shared and self.rows[key]]
        if taken:
            columns = [Column.of(leaves[key], self.rows[key], range(T)) for key in taken]
            ops.combine_([column.target for column in columns], entries(columns, T), weights, False)
            written += [(column.leaf, column.combined) for column in columns]
            del columns
        ghosts = [ghost for ghost in self._ghosts.values() if ghost.arrived]
        if ghosts:
            mixed = ops.combine([ghost.arrived.get(t) for t in range(T) for ghost in ghosts], weights, False, None)
            written += [(g.leaf, own(g.gradient(arriving), g.leaf)) for g, arriving in zip(ghosts, mixed, strict=True)]
        for key, held in self.rows.items():
            if held and key not in self._shared:
                written.append((leaves[key], plain_sum(held, leaves[key])))
        shared = [leaf for leaf in self._rest if id(leaf) in self._shared]
        others = [leaf for leaf in self._rest if id(leaf) not in self._shared]
        if others:
            written += _passed(_mixed(flows, torch.ones_like(weights)), others, retain_graph=True)
        if shared:
            written += _passed(_mixed(flows, weights), shared, retain_graph=self._retain)
        assert len(weights) == T
        return written


def shared_leaves(graph: Graph, given: Sequence[Parameter] | None, tasks: int) -> dict[int, Tensor]:
    """The parameters to operate on, by id: those given that some task reaches, or those that two tasks reach.

    Raises:
        ValueError, TypeError: there is none, or one of a dtype that is not floating.
    """
    if given is not None:
        shared = {id(p.tensor): p.tensor for p in given if id(p.tensor) in graph.reach}
    else:
        shared = {key: graph.leaves[key] for key, bits in graph.reach.items() if bits.bit_count() > 1}
    check_operable(list(shared.values()))
    check_shared(list(shared), given, tasks)
    return shared


def measured_leaves(on: Sequence[Parameter], shared: dict[int, Tensor]) -> list[Tensor]:
    """Those of the shared parameters that the Gram matrix is to be measured on.

    Raises:
        ValueError: there is none.
    """
    measured = [p.tensor for p in on if id(p.tensor) in shared]
    if not measured:
        raise ValueError(
            f"gram_on: expected some of the {len(shared)} parameters that the tasks share, found none of them among {len(on)}."
        )
    return measured


def _gram_of(leaves: Sequence[Tensor], rows: Rows, tasks: int) -> Tensor:
    """K of T tasks over some leaves. [T, T]"""
    columns = [Column.of(leaf, rows[id(leaf)], range(tasks)) for leaf in leaves]
    return ops.gram(entries(columns, tasks), tasks, False, None)


def _passed(flow: Flow, leaves: Sequence[Tensor], *, retain_graph: bool) -> list[tuple[Tensor, Tensor]]:
    """Each leaf that one backward pass reaches, and its gradient."""
    found = through_all(flow, leaves, retain_graph=retain_graph)
    return [(leaf, own(found[id(leaf)], leaf)) for leaf in leaves if id(leaf) in found]


def _mixed(flows: Sequence[Flow], weights: Tensor) -> Flow:
    """sum_t w_t of what has arrived at each edge."""
    edges = list(dict.fromkeys(edge for flow in flows for edge in flow))
    mixed = ops.combine([flow.get(edge) for flow in flows for edge in edges], weights, False, None)
    return dict(zip(edges, mixed, strict=True))
