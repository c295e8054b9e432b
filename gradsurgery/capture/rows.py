"""The T tasks' gradients at every leaf of a graph, gathered by one pass a task, or by one for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

from .batch import Batch
from .graph import Graph
from .passes import Passes, Rows


def rows_of(graph: Graph, batch: Batch, retain_graph: bool) -> Rows:
    """The gradients of every leaf, of every task that reaches it, one task's pass after the other."""
    running = Passes(graph, batch.flows())
    rows: Rows = {}
    for region in graph.regions([cut for cut in graph.narrow() if cut == graph.private_cut]):
        rows |= running.through(region, retain_graph=retain_graph)
    return rows


def batched_rows(graph: Graph, batch: Batch, retain_graph: bool) -> Rows:
    """The same, with one pass for all tasks from where they part on."""
    if len(batch.names) < 2:
        return rows_of(graph, batch, retain_graph)
    if not graph.where_tasks_part():
        raise ValueError(
            "passes: 'batched' takes the tasks together through the part of the graph that they share, found none: the losses come "
            "from separate forward passes, share parameters that are used on both sides of where the tasks part, or go through "
            "modules with backward hooks. Use 'sequential'."
        )
    if graph.compiled:
        raise ValueError(
            "passes: expected 'sequential' where torch.compile compiled a part that the tasks share, which torch.vmap cannot go "
            "through; found 'batched'."
        )
    running = Passes(graph, batch.flows())
    private, common = graph.regions([graph.private_cut])
    rows = running.through(private, retain_graph=retain_graph)
    for leaf, stacked in zip(common.leaves, running.together(common, retain_graph=retain_graph), strict=True):
        reached = graph.reach[id(leaf)]
        rows[id(leaf)] = {t: stacked[t] for t in range(len(batch.names)) if reached >> t & 1}
    return rows


def streamed(
    graph: Graph, batch: Batch, retain_graph: bool, shared: set[int], take: Callable[[int, dict[int, Tensor]], None]
) -> Rows:
    """As ``rows_of``, but the gradients of shared parameters are handed over task by task as soon as they are all there.

    Args:
        graph: below the losses.
        batch: the losses.
        retain_graph: keep the graph for another backward pass.
        shared: the ids of those parameters.
        take: called for every task in order, with its number and these gradients, before the next task's last pass.

    Returns:
        The gradients at the other leaves.
    """
    running = Passes(graph, batch.flows())
    rows: Rows = {}
    waiting = deque(range(len(batch.names)))

    def after(task: int, found: Rows) -> None:
        while waiting and waiting[0] <= task:
            t = waiting.popleft()
            held = [(key, of_tasks) for part in (rows, found) for key, of_tasks in part.items() if key in shared and t in of_tasks]
            take(t, {key: of_tasks.pop(t) for key, of_tasks in held})

    *before, last = graph.regions([cut for cut in graph.narrow() if cut == graph.private_cut])
    for region in before:
        rows |= running.through(region, retain_graph=retain_graph)
    found = running.through(last, retain_graph=retain_graph, after=after)
    after(len(batch.names) - 1, found)
    return rows | found
