"""Form C on several processes: what their gradients at parameters come to together, and who sends what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.capture.batch import Batch, Collected, ratio
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.parameters import Parameter, check_shared, own, plain_sum, writable, write_grads
from gradsurgery.capture.rows import streamed
from gradsurgery.distributed.domain import Domain
from gradsurgery.distributed.reduction import Average, Reduction
from gradsurgery.methods.registry import WEIGHTED
from gradsurgery.one_pass import OnePass
from gradsurgery.surgery import Surgery


class ParametersOverRanks(Surgery):
    """Surgery on gradients at parameters, where each of several processes has a part: of the batch, or of the parameters.

    ``ParameterSpace`` leads here with the losses of this rank. Where the ranks decide together, ``_over_ranks`` makes their step
    with a model that is on every rank, and ``_backward_sharded`` with parameters that are divided. Where each has decided by
    itself, ``_write`` averages.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._domain: Domain | None = None

    # --- a model that is on every rank ----------------------------------------------------------------------------------------

    def _over_ranks(self, batch: Batch, retain_graph: bool, accumulate: bool, gathered: Callable[[], Collected] | None) -> None:
        """What one process would do with the losses of all ranks.

        Args:
            batch: this rank's losses, in the order of the known tasks.
            retain_graph: keep the graph for another backward pass.
            accumulate: add to ``.grad``; False: replace it.
            gathered: gives this rank's gradients all at once, the batch's among them; None: each task's are sent when its pass
                has found them.
        """
        with self._undone_on_error():
            weights = self._kept_by_all(batch) if gathered is None else None
            if weights is not None:
                written = self._weighted_by(weights, batch, retain_graph, accumulate)
            else:
                written = self._reduced(batch, retain_graph, accumulate, gathered)
        write_grads(written, accumulate=accumulate)

    def _kept_by_all(self, batch: Batch) -> Tensor | None:
        """The weights of an earlier step, where one weighted pass and one average are enough; by the known tasks. [T]"""
        if self.method.spec.family not in WEIGHTED or self._group_by is not None or batch.shared == []:
            return None
        self._losses = self._losses or {**batch.values}
        known = self._names.known
        return self._kept(known, [name in batch.names for name in known], batch.device)

    def _weighted_by(self, weights: Tensor, batch: Batch, retain_graph: bool, accumulate: bool) -> list[tuple[Tensor, Tensor]]:
        """The mean over the ranks of what one weighted pass brings to each."""
        gradients: dict[int, Tensor] = {}
        reached: list[Tensor] = []
        if batch.names:
            graph = batch.graph()
            shared = {id(p.tensor): p.tensor for p in batch.shared or [] if id(p.tensor) in graph.leaves}
            plan = OnePass(graph, batch.flows(), shared, retain_graph)
            plan.to_where_tasks_part()
            own_weights = torch.stack([weights[self._names.index(name)] for name in batch.names])
            gradients = {id(leaf): gradient for leaf, gradient in plan.finish(own_weights)}
            reached = list(graph.leaves.values())
        return self._averaged(self._agreed(batch.shared, batch.wanted, reached, batch.names), gradients, accumulate)

    def _reduced(
        self, batch: Batch, retain_graph: bool, accumulate: bool, gathered: Callable[[], Collected] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Surgery on shards of the T mean gradients, and what is to be written."""
        assert self._together is not None
        known = self._names.known
        if gathered is not None or not batch.names:
            collected = Collected().plus(batch, {}, {}) if gathered is None else gathered()
            present = [name for name in known if name in collected.tasks]
            domain = self._agreed(collected.shared, collected.wanted, collected.leaves.values(), present)
            reduction = Reduction(self._together, [p.tensor for p in domain.shared], len(known))
            for t, name in enumerate(known):
                held = ((id(p.tensor), collected.rows.get(id(p.tensor), {}).get(name)) for p in domain.shared)
                reduction.put(t, {key: gradient for key, gradient in held if gradient is not None})
            rest: Mapping[int, Mapping[Any, Tensor]] = collected.rows
            losses, scale = collected.losses, collected.scale
        else:
            graph = batch.graph()
            domain = self._agreed(batch.shared, batch.wanted, graph.leaves.values(), batch.names)
            reduction = Reduction(self._together, [p.tensor for p in domain.shared], len(known))
            places = [self._names.index(name) for name in batch.names]
            operated = {id(p.tensor) for p in domain.shared}
            rest = streamed(graph, batch, retain_graph, operated, lambda t, gradients: reduction.put(places[t], gradients))
            losses, scale = batch.values, batch.scale
        reduction.end()
        factor = ratio(batch.scale, scale)
        sums = {id(leaf): plain_sum(rest[id(leaf)], leaf) for leaf in domain.others if rest.get(id(leaf))}
        if not domain.leaves:
            return []
        reached = [id(leaf) in sums or id(leaf) in reduction.reached for leaf in domain.leaves]
        average = Average(self._together, domain.others, sums, reached, domain.leaves[0].device)
        entries = reduction.entries()
        anywhere = average.anywhere()
        P = len(domain.shared)
        if P:
            operate = [p for p, here in enumerate(anywhere[:P]) if here]
            check_shared(operate, domain.shared, len(known))
            self._losses = self._losses or {**losses}
            paths = [domain.shared[p].name for p in operate]
            targets = [part for part, here in zip(reduction.targets(), anywhere, strict=False) if here]
            if len(known) == 1:
                self._plain_step(known[0], targets[0].device, self._losses)
            else:
                given = TaskGradients([entries[t * P + p] for t in range(len(known)) for p in operate], len(known))
                self._surgery(given, known, lambda: paths, targets, None, False, scale, "parameters", reduction.here)
            if factor is not None:
                for part in targets:
                    part.mul_(factor.to(part))
        averages = average.result()
        if factor is not None:
            for whole in averages:
                whole.mul_(factor.to(whole))
        return to_write(domain.leaves, [*reduction.gathered(), *averages], anywhere, accumulate)

    # --- shards of parameters ------------------------------------------------------------------------------------------------

    def _backward_sharded(self, batch: Batch, retain_graph: bool) -> None:
        """A backward pass a task through the hooks of FSDP2 or tensor parallelism, and surgery on the shards that they leave."""
        from gradsurgery.distributed.fully_sharded import Shards, check_step, put_aside  # long to import, but where DTensor is

        if self._together is None:
            raise ValueError(
                "process_group: expected the mesh of the sharded parameters, or torch.distributed.group.WORLD, with sync='global', "
                "as their gradients are reduced over the ranks before anybody sees them; found none, or sync='local'."
            )
        check_step(batch, self._names.known, self._together)
        if len(batch.names) == 1:
            torch.autograd.backward(batch.losses[0], batch.seeds(batch.losses[0]), retain_graph=retain_graph)
            self._plain_step(batch.names[0], batch.losses[0][0].device, self._losses or batch.values)
            return
        self._losses = self._losses or {**batch.values}
        with put_aside(batch.shared or []):
            shards = Shards.of(batch, retain_graph, self._together)
            here, paths = [True] * len(batch.names), [p.name for p in shards.parameters]
            self._surgery(shards.given, batch.names, lambda: paths, shards.targets, scale=batch.scale, kind="parameters", here=here)
        write_grads(shards.combined, accumulate=True)

    # --- what the ranks write -------------------------------------------------------------------------------------------------

    def _write(
        self,
        written: Sequence[tuple[Tensor, Tensor]],
        shared: list[Parameter] | None,
        wanted: dict[int, Parameter] | None,
        names: Sequence[str],
        accumulate: bool,
    ) -> None:
        """Gradients into ``.grad``; where each rank has operated on its own, their averages."""
        if self._ranks is not None:
            domain = self._agreed(shared, wanted, [leaf for leaf, _ in written], names)
            written = self._averaged(domain, {id(leaf): gradient for leaf, gradient in written}, accumulate)
        write_grads(written, accumulate=accumulate)

    def _agreed(
        self,
        shared: list[Parameter] | None,
        wanted: dict[int, Parameter] | None,
        reached: Iterable[Tensor],
        names: Sequence[str],
    ) -> Domain:
        """The leaves that get gradients, which the ranks have compared."""
        assert self._ranks is not None
        found = list(reached)
        if self._domain is None or not self._domain.serves(shared, wanted):
            self._domain = Domain(self._ranks, shared, wanted, found, names)
        self._domain.check(found)
        return self._domain

    def _averaged(self, domain: Domain, gradients: Mapping[int, Tensor], accumulate: bool) -> list[tuple[Tensor, Tensor]]:
        """The ranks' mean gradient of every leaf that some rank reaches."""
        if not domain.leaves:
            return []
        assert self._ranks is not None
        here = [id(leaf) in gradients for leaf in domain.leaves]
        average = Average(self._ranks, domain.leaves, gradients, here, domain.leaves[0].device)
        anywhere = average.anywhere()
        return to_write(domain.leaves, average.result(), anywhere, accumulate)


def to_write(
    leaves: Sequence[Tensor], gradients: Sequence[Tensor], reached: Sequence[bool], accumulate: bool
) -> list[tuple[Tensor, Tensor]]:
    """The leaves that are reached, with gradients that may become ``.grad``: copies of views, unless they are added to it."""
    return [
        (leaf, gradient if accumulate and writable(leaf.grad) else own(gradient, leaf))
        for leaf, gradient, here in zip(leaves, gradients, reached, strict=True)
        if here
    ]
