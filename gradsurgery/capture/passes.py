"""Backward passes of several tasks through the regions of one graph, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .ghost import Ghost
from .graph import Edge, Graph, Region
from .parameters import alone

Flow: TypeAlias = dict[Edge, Tensor]
"""Gradients on their way: what has arrived at each edge from above."""

Rows: TypeAlias = dict[int, dict[int, Tensor]]
"""The gradients at each leaf, by its id, of each task that reaches it."""


class Passes:
    """What T backward passes have come to.

    Args:
        graph: below the losses.
        flows: where each task's pass begins, and with which gradient. [T]

    Attributes:
        flows: where each task's pass stands. [T]
    """

    def __init__(self, graph: Graph, flows: Sequence[Flow]) -> None:
        self.graph = graph
        self.flows = [dict(flow) for flow in flows]

    def through(
        self,
        region: Region,
        *,
        retain_graph: bool,
        leaves: Sequence[Tensor] | None = None,
        stay: bool = False,
        ghosts: Sequence[Ghost] = (),
        before: Callable[[int], None] = lambda left: None,
        after: Callable[[int, Rows], None] = lambda task, rows: None,
    ) -> Rows:
        """Runs every task's pass through a region, and takes the gradients at its leaves.

        Args:
            region: the next one.
            retain_graph: keep what it has saved; else it is let go of as soon as no other task needs it.
            leaves: of the region's, those to ask for; None: all.
            stay: the passes do not go on: they can run through the region again.
            ghosts: layers of it, whose weights' gradients are not asked for; they take what arrives at their outputs instead.
            before: called before each task's pass, with the number of passes that are left after it.
            after: called after each task's pass, with its number and what was taken so far, of which it may take some away.
        """
        biases = {id(ghost.bias): ghost for ghost in ghosts if ghost.bias is not None}
        spared = {id(ghost.leaf) for ghost in ghosts} | biases.keys()
        asked = [leaf for leaf in (region.leaves if leaves is None else leaves) if id(leaf) not in spared]
        rows: Rows = {key: {} for key in [*map(id, asked), *biases]}
        layers = {ghost.edge: ghost for ghost in ghosts}
        running = [t for t, flow in enumerate(self.flows) if any(edge[0] in region.nodes for edge in flow)]
        with _Senders({} if stay else region.out) as senders, _Receivers(layers) as receivers:
            for k, t in enumerate(running):
                before(len(running) - 1 - k)
                reached = [leaf for leaf in asked if self.graph.reach[id(leaf)] >> t & 1]
                met = [ghost.edge for ghost in ghosts if self.graph.reach[id(ghost.leaf)] >> t & 1]
                flow = self.flows[t]
                entering = {edge: flow[edge] for edge in flow if edge[0] in region.nodes}
                if not stay:
                    for edge in entering:
                        del flow[edge]
                keep = retain_graph or not (region.private or t == running[-1])
                leaving = [] if stay else list(region.out)
                for key, gradient in _run(entering, reached, leaving, keep, met, receivers).items():
                    if isinstance(key, int):
                        rows[key][t] = gradient
                    else:
                        layers[key].take(t, gradient)
                for key, ghost in biases.items():
                    if t in ghost.arrived:
                        rows[key][t] = ghost.of_bias(t)
                senders.hand_over(flow)
                after(t, rows)
        return rows

    def together(self, region: Region, *, retain_graph: bool) -> list[Tensor]:
        """Runs all tasks' passes through the last region in one, by vmap. [L] of [T, ...]"""
        leaves = region.leaves
        edges = [edge for edge in dict.fromkeys(edge for flow in self.flows for edge in flow) if edge[0] in region.nodes]
        stacked = []
        for edge in edges:
            arrived = [flow.get(edge) for flow in self.flows]
            like = next(g for g in arrived if g is not None)
            stacked.append(torch.stack([torch.zeros_like(like) if g is None else g for g in arrived]))
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            [_edge(edge) for edge in edges],
            leaves,
            stacked,
            retain_graph=retain_graph,
            allow_unused=True,
            is_grads_batched=True,
        )
        return [_like_all(leaf, len(self.flows)) if g is None else g for leaf, g in zip(leaves, grads, strict=True)]


def through_all(flow: Flow, leaves: Sequence[Tensor], *, retain_graph: bool) -> dict[int | Edge, Tensor]:
    """The gradients that one backward pass from where a flow stands brings to leaves, by their ids."""
    return _run(flow, leaves, [], retain_graph) if flow and leaves else {}


def _like_all(leaf: Tensor, tasks: int) -> Tensor:
    return torch.zeros(tasks, *leaf.shape, dtype=leaf.dtype, device=leaf.device)


def _run(
    flow: Flow,
    leaves: Sequence[Tensor],
    leaving: Sequence[Edge],
    retain_graph: bool,
    met: Sequence[Edge] = (),
    receivers: _Receivers | None = None,
) -> dict[int | Edge, Tensor]:
    """The gradients at leaves, by their ids, and at edges on the way, each in memory of its own; it ends at those ``leaving``.

    Args:
        met: the edges on the way. [R]
        receivers: know what their nodes receive, where these run.
    """
    asked: dict[int | Edge, Tensor | GradientEdge] = {id(leaf): leaf for leaf in leaves} | {edge: _edge(edge) for edge in met}
    if not asked and not leaving:
        return {}
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [_edge(edge) for edge in flow],
        [*asked.values(), *map(_edge, leaving)],  # type: ignore[arg-type]  # torch takes both together
        list(flow.values()),
        retain_graph=retain_graph,
        allow_unused=True,
    )
    held = {key: gradient for key, gradient in zip(asked, found, strict=False) if gradient is not None}
    del found
    if receivers is not None:
        held |= receivers.taken()
    return {key: held[key] if alone(held, key) else held[key].clone() for key in list(held)}


def _edge(edge: Edge) -> GradientEdge:
    return GradientEdge(*edge)


class _Senders:
    """Takes what nodes send by edges that leave a region.

    Autograd would hand out the gradient at such an edge after the hooks of the tensor there, and run these again when the pass goes
    on; a hook that changes the gradient would do so twice. What its senders send is what has passed no hook yet.

    Args:
        out: the edges, with their senders and the numbers of the senders' outputs.
    """

    def __init__(self, out: dict[Edge, list[tuple[Any, int]]]) -> None:
        self._sent: dict[tuple[Any, int], Tensor] = {}  # by sender and output, as devices have threads of their own
        self._edges = {(node, index): edge for edge, senders in out.items() for node, index in senders}

    def __enter__(self) -> _Senders:
        with ExitStack() as handles:
            for node in dict.fromkeys(node for node, _ in self._edges):
                handles.callback(node.register_hook(self._taking(node)).remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()

    def _taking(self, node: Any) -> Callable[[Sequence[Tensor | None], object], None]:
        outputs = [index for sender, index in self._edges if sender is node]

        def take(sent: Sequence[Tensor | None], _: object) -> None:
            for index in outputs:
                gradient = sent[index]
                if gradient is not None:
                    self._sent[node, index] = gradient

        return take

    def hand_over(self, flow: Flow) -> None:
        """Adds what was sent in one pass to where the pass stands."""
        for sender, edge in self._edges.items():
            if sender in self._sent:
                mine = alone(self._sent, sender)  # a node may return the same memory in every pass
                gradient = _as_expected(self._sent.pop(sender), edge)
                flow[edge] = flow[edge] + gradient if edge in flow else gradient if mine else gradient.clone()


class _Receivers:
    """Takes what nodes receive, after all hooks there; autograd hands it out before them, where the node runs.

    Args:
        edges: to these nodes.
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        self._edges = list(edges)
        self._received: dict[int | Edge, Tensor] = {}

    def __enter__(self) -> _Receivers:
        with ExitStack() as handles:
            for edge in self._edges:
                handles.callback(edge[0].register_prehook(self._taking(edge)).remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()

    def _taking(self, edge: Edge) -> Callable[[Sequence[Tensor | None]], None]:
        def take(received: Sequence[Tensor | None]) -> None:
            gradient = received[edge[1]]
            if gradient is not None:
                self._received[edge] = gradient

        return take

    def taken(self) -> dict[int | Edge, Tensor]:
        """What was received since this was asked last."""
        received, self._received = self._received, {}
        return received


def _as_expected(gradient: Tensor, edge: Edge) -> Tensor:
    """As autograd itself does between two nodes: summed over what was broadcast, and of the receiver's type."""
    expected = edge[0]._input_metadata[edge[1]]
    if list(gradient.shape) != list(expected.shape):
        gradient = gradient.sum_to_size(tuple(expected.shape))
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)
