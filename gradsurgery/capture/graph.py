"""The autograd graph below several losses: which task reaches which leaf, and where the graph can be cut into regions.

A backward pass can stop at a cut and be taken up again from there, if no edge that crosses the cut leads to another one, and no
leaf is used on both sides: autograd runs all that leads to what is asked of it, so that a pass would otherwise go beyond the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .checkpoints import blocks_of
from .compiled import check_several_passes, is_compiled

Edge: TypeAlias = tuple[Any, int]
"""A node of autograd's graph and the number of one of its inputs: where a gradient arrives."""

Sent: TypeAlias = tuple[int, Edge]
"""The number of one of a node's outputs, and the edge by which it goes on."""

_LEAF = "torch::autograd::AccumulateGrad"
_REENTRANT = "CheckpointFunctionBackward"
_MODULE_HOOK = "BackwardHookFunctionBackward"
_TRANSPOSE = "TBackward0"


@dataclass
class Region:
    """A part of the graph that every task's backward pass runs through before it goes on to the next.

    Attributes:
        nodes: that run.
        leaves: that are used by its nodes, and no others. [L]
        out: the edges by which gradients leave, and for each the nodes that send them, with the numbers of their outputs.
        private: whether no node of it is reached by two tasks.
        blocks: how many checkpointed blocks it has, each of which a pass through it recomputes.
        one_block: whether most of it is one of these.
    """

    nodes: set[Any] = field(default_factory=set)
    leaves: list[Tensor] = field(default_factory=list)
    out: dict[Edge, list[tuple[Any, int]]] = field(default_factory=dict)
    private: bool = False
    blocks: int = 0
    one_block: bool = False


class Graph:
    """What T losses reach, from the losses down; what leads to no wanted leaf is left out.

    Args:
        roots: the edges at which each task's backward passes begin. [T]
        wanted: the leaves that get gradients, by id; None: all.

    Attributes:
        reach: the tasks that reach a leaf as bits, by the leaf's id; in the order of the graph.
        leaves: the leaves by id.
        compiled: whether a part that several tasks reach was compiled by torch.compile.
        fused: whether the tasks come from different outputs of such a part, which then may hold their heads, too: torch reports of
            all its parameters that every task reaches them.

    Raises:
        RuntimeError: a re-entrant checkpoint, whose inner parameters are not to be seen from outside; a part that torch.compile
            compiled for one backward pass, and several go through it.
    """

    def __init__(self, roots: Sequence[Sequence[Edge]], wanted: Iterable[int] | None = None) -> None:
        sends = _topological([node for edges in roots for node, _ in edges])
        ordered = {node: [edge for _, edge in sent] for node, sent in sends.items()}
        bits: dict[Any, int] = dict.fromkeys(ordered, 0)
        for t, edges in enumerate(roots):
            for node, _ in edges:
                bits[node] |= 1 << t
        for node, inputs in ordered.items():
            for below, _ in inputs:
                bits[below] |= bits[node]
        allowed = None if wanted is None else set(wanted)
        self.leaves: dict[int, Tensor] = {}
        self.reach: dict[int, int] = {}
        self._leaf_of: dict[Any, int] = {}
        for node in ordered:
            if node.name() == _LEAF and (allowed is None or id(node.variable) in allowed):
                self.leaves[id(node.variable)] = node.variable
                self.reach[id(node.variable)] = bits[node]
                self._leaf_of[node] = id(node.variable)
        useful: set[Any] = set(self._leaf_of)
        for node, inputs in reversed(ordered.items()):
            if any(below in useful for below, _ in inputs):
                useful.add(node)
        inner = [node for node in ordered if node in useful and node not in self._leaf_of]
        self._senders = {node: [sent for sent in sends[node] if sent[1][0] in useful] for node in inner}
        self._below = {node: [edge for _, edge in sent] for node, sent in self._senders.items()}
        self.compiled = any(bits[node].bit_count() > 1 and is_compiled(node) for node in inner)
        if self.compiled:
            check_several_passes()
        self.fused = self.compiled and self._differently_entered(roots, bits)
        private = [node for node in inner if bits[node].bit_count() == 1]
        common = [node for node in inner if bits[node].bit_count() > 1]
        self._order = [*private, *common]
        self._private = len(private)
        self._root_nodes = {node for edges in roots for node, _ in edges}

    def _differently_entered(self, roots: Sequence[Sequence[Edge]], bits: dict[Any, int]) -> bool:
        """Whether some compiled part is reached by one task at another of its outputs than by another task."""
        entered: dict[Edge, int] = {}
        for t, edges in enumerate(roots):
            for edge in edges:
                entered[edge] = entered.get(edge, 0) | 1 << t
        for node, inputs in self._below.items():
            for edge in inputs:
                entered[edge] = entered.get(edge, 0) | bits[node]
        return any(node in self._below and is_compiled(node) and tasks != bits[node] for (node, _), tasks in entered.items())

    def regions(self, cuts: Sequence[int]) -> list[Region]:
        """The graph, cut after the nodes at these places (of ``narrow``, ascending)."""
        bounds = [0, *cuts, len(self._order)]
        regions = [Region(set(self._order[a:b]), private=b <= self._private) for a, b in pairwise(bounds)]
        for region, (a, b) in zip(regions, pairwise(bounds), strict=True):
            within = [min(last + 1, b) - max(first, a) for first, last in self._blocks if first < b and last >= a]
            region.blocks, region.one_block = len(within), 2 * max(within, default=0) > b - a
        home = {node: region for region in regions for node in region.nodes}
        placed: set[int] = set()
        for node in self._order:
            for index, (below, number) in self._senders[node]:
                leaf = self._leaf_of.get(below)
                if leaf is None and home[below] is not home[node]:
                    home[node].out.setdefault((below, number), []).append((node, index))
                elif leaf is not None and leaf not in placed:
                    placed.add(leaf)
                    home[node].leaves.append(self.leaves[leaf])
        for node in self._root_nodes & set(self._leaf_of):  # a loss that is itself a leaf
            leaf = self._leaf_of[node]
            if leaf not in placed:
                regions[0].leaves.append(self.leaves[leaf])
            next(region for region in regions if any(own is self.leaves[leaf] for own in region.leaves)).nodes.add(node)
        return regions

    def sole_users(self) -> dict[int, tuple[Any, int, bool]]:
        """Of each leaf that one node uses, once: the node, which of its outputs leads there, and whether by a transpose."""
        users: dict[Any, list[tuple[Any, int]]] = {}
        for node in self._order:
            for index, (below, _) in self._senders[node]:
                users.setdefault(below, []).append((node, index))
        found = {}
        for node in self._root_nodes:  # a loss is used by its task
            users.setdefault(node, []).append((None, 0))
        for below, leaf in self._leaf_of.items():
            uses = users[below]
            turned = len(uses) == 1 and uses[0][0] is not None and uses[0][0].name() == _TRANSPOSE
            if turned:
                uses = users[uses[0][0]]
            if len(uses) == 1 and uses[0][0] is not None:
                found[leaf] = (*uses[0], turned)
        return found

    def _turns_a_leaf(self, node: Any) -> bool:
        """Whether a node makes the transpose of a leaf, as dense layers do; it stays with the layer that uses that."""
        return node.name() == _TRANSPOSE and any(below in self._leaf_of for below, _ in self._below[node])

    def outputs(self, node: Any) -> set[int]:
        """The numbers of a node's outputs that lead to wanted leaves."""
        return {index for index, _ in self._senders[node]}

    def narrow(self, *, whole_blocks: bool = True) -> list[int]:
        """After how many nodes the graph may be cut, ascending: after the private ones, or where one node alone lies beyond. [C]

        In which order the nodes count: those that one task reaches, then the others, users first.

        Args:
            whole_blocks: not within a checkpointed block, which the passes of both parts would recompute.
        """
        if any(node.name() == _MODULE_HOOK for node in self._order):  # such a hook has to see a module's both ends in one pass
            return []
        position = {node: k for k, node in enumerate(self._order)}
        uses: dict[Any, list[int]] = {}
        for node in self._order:
            for below, _ in self._below[node]:
                uses.setdefault(below, []).append(position[node])
        spans = [(min(at), max(at)) for below, at in uses.items() if below in self._leaf_of]
        spans += [(min(at), position[below]) for below, at in uses.items() if below in position and self._turns_a_leaf(below)]
        crossing = _crossed([*spans, *self._blocks] if whole_blocks else spans, len(self._order))
        opened = [0] * (len(self._order) + 1)  # how many nodes wait beyond a place that some node before it, or a loss, leads to
        for node, k in position.items():
            first = 0 if node in self._root_nodes else min(uses[node]) + 1
            opened[first] += 1
            opened[k + 1 if k + 1 < len(opened) else k] -= 1
        cuts = []
        waiting = 0
        for k in range(len(self._order)):
            waiting += opened[k]
            if k and not crossing[k] and (waiting == 1 or (k == self._private and self._antichain(k))):
                cuts.append(k)
        return cuts

    @cached_property
    def _blocks(self) -> list[tuple[int, int]]:
        """The positions at which each checkpointed block begins and ends; no two overlap."""
        return blocks_of(self._order)

    def where_tasks_part(self) -> list[int]:
        """The place after the private nodes, if the graph can be cut there at all, even within a checkpointed block. [0 or 1]

        For a single pass of all tasks from there on: it costs one recomputation of such a block, and not one a task.
        """
        return [cut for cut in self.narrow(whole_blocks=False) if cut == self._private]

    @property
    def private_cut(self) -> int:
        """After how many nodes those that one task alone reaches have run."""
        return self._private

    def slices(self, cuts: Sequence[int], largest: int) -> list[int]:
        """Some of the places ``cuts``, so that the leaves between two of them take about ``largest`` bytes at most."""
        before = [0] * (len(self._order) + 1)  # the bytes of all leaves that the nodes before a place use first
        for place, leaf in self.first_uses():
            before[place] += leaf.nbytes
        before = list(accumulate(before))
        chosen: list[int] = []
        start = 0
        for cut, following in zip(cuts, [*cuts, len(self._order)][1:], strict=True):
            if cut == self._private or before[following] - before[start] > largest:
                chosen.append(cut)
                start = cut
        return chosen

    def first_uses(self) -> list[tuple[int, Tensor]]:
        """Each leaf that a node uses, and after how many nodes the first of these has run, ascending."""
        found: dict[int, int] = {}
        for k, node in enumerate(self._order):
            for below, _ in self._below[node]:
                if below in self._leaf_of:
                    found.setdefault(self._leaf_of[below], k + 1)
        return [(place, self.leaves[leaf]) for leaf, place in found.items()]

    def place_after(self, leaves: Iterable[Tensor]) -> int:
        """After how many nodes all users of some leaves have run."""
        wanted = {id(leaf) for leaf in leaves}
        last = [
            k + 1 for k, node in enumerate(self._order) if any(self._leaf_of.get(below) in wanted for below, _ in self._below[node])
        ]
        return max(last, default=0)

    def _antichain(self, place: int) -> bool:
        """Whether no edge that crosses a cut leads to another one."""
        beyond = self._order[place:]
        targets = {below for node in self._order[:place] for below, _ in self._below[node]} | self._root_nodes
        led: set[Any] = set()
        for node in beyond:
            if node in led and node in targets:
                return False
            if node in led or node in targets:
                led.update(below for below, _ in self._below[node])
        return True


def _topological(roots: Iterable[Any]) -> dict[Any, list[Sent]]:
    """All nodes below, those that send gradients before those that receive them, each with its outputs that go somewhere.

    Among the nodes that could be next, one nearest to the leaves is: what makes of a parameter what a layer uses (a transpose, a
    norm) then stands beside that layer, and the graph is narrow after it.
    """
    below: dict[Any, list[Sent]] = {}
    height: dict[Any, int] = {}
    users: dict[Any, int] = {}
    stack = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            height[node] = 1 + max((height[receiver] for _, (receiver, _) in below[node]), default=0)
        elif node not in below:
            if node.name() == _REENTRANT:
                raise RuntimeError(
                    "losses: a module was run under torch.utils.checkpoint with use_reentrant=True, which hides its parameters "
                    "from the graph. Checkpoint it with use_reentrant=False."
                )
            below[node] = [sent for sent in enumerate(node.next_functions) if sent[1][0] is not None]
            users.setdefault(node, 0)
            stack.append((node, True))
            for _, (receiver, _) in below[node]:
                users[receiver] = users.get(receiver, 0) + 1
                if receiver not in below:
                    stack.append((receiver, False))
    count = 0
    ready = [(height[node], k, node) for k, node in enumerate(below) if users[node] == 0]
    heapify(ready)
    ordered: dict[Any, list[Sent]] = {}
    while ready:
        _, _, node = heappop(ready)
        ordered[node] = below[node]
        for _, (receiver, _) in below[node]:
            users[receiver] -= 1
            if users[receiver] == 0:
                count -= 1  # the latest first, where heights are the same; never two alike, as nodes cannot be compared
                heappush(ready, (height[receiver], count, receiver))
    return ordered


def _crossed(spans: Iterable[tuple[int, int]], places: int) -> list[bool]:
    """For each place 0..places, whether some span [first, last] of positions begins before it and ends at it or later."""
    change = [0] * (places + 2)
    for first, last in spans:
        change[first + 1] += 1
        change[last + 1] -= 1
    crossed, depth = [], 0
    for k in range(places + 1):
        depth += change[k]
        crossed.append(depth > 0)
    return crossed


def reaches(edges: Iterable[Edge], leaves: Iterable[Tensor]) -> bool:
    """Whether some of the edges lead to one of the leaves; what lies beyond the first that is found is not looked at."""
    wanted = {id(leaf) for leaf in leaves}
    stack = [node for node, _ in edges]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == _LEAF and id(node.variable) in wanted:
            return True
        further = [below for below, _ in node.next_functions if below is not None and below not in seen]
        seen.update(further)
        stack += further
    return False


def edges_of(losses: Iterable[Tensor]) -> list[Edge]:
    """Where the backward passes of some losses begin."""
    found = [torch.autograd.graph.get_gradient_edge(loss) for loss in losses]
    return [(edge.node, edge.output_nr) for edge in found]
