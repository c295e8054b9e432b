"""Form C: surgery on the gradients of the parameters that the tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradsurgery.capture.batch import Batch, Collected, ratio, reaching, safe
from gradsurgery.capture.called import Called
from gradsurgery.capture.column import Column, entries
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.graph import edges_of, reaches
from gradsurgery.capture.grouping import SAMPLE
from gradsurgery.capture.parameters import (
    Parameter,
    Parameters,
    TaskLosses,
    check_operable,
    check_shared,
    listed,
    plain_sum,
    task_losses,
    writable,
)
from gradsurgery.capture.rows import batched_rows, rows_of
from gradsurgery.distributed import several_processes
from gradsurgery.distributed.gathered import between_steps, check_not_gathered, check_plain, check_whole, is_sharded
from gradsurgery.methods.registry import WEIGHTED
from gradsurgery.one_pass import OnePass, measured_leaves, shared_leaves
from gradsurgery.options import check_bool, check_choice
from gradsurgery.parameters_over_ranks import ParametersOverRanks
from gradsurgery.spare import Spare


class ParameterSpace(ParametersOverRanks):
    """Surgery in parameter space, as in the PCGrad paper: T backward passes, and one gradient for what the tasks share."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._collected: Collected | None = None
        self._spare = Spare()

    def backward(
        self,
        losses: TaskLosses | None = None,
        shared: Parameters | None = None,
        inputs: Parameters | None = None,
        retain_graph: bool = False,
        scaler: Any = None,
        accumulate: bool = True,
        *,
        gram_on: Parameters | None = None,
        memory: str = "full",
        passes: str = "sequential",
    ) -> None:
        """Surgery, and then ``.grad``: of the losses' gradients at the parameters that the tasks share, or of what was captured.

        With ``losses``, form C: a backward pass a task, surgery on the gradients of the shared parameters, and the result in their
        ``.grad``. Every other leaf gets the sum of its tasks' gradients, a head its own. Parameters that no loss reaches, and
        frozen ones, keep their ``.grad``. Zeroing, clipping and the optimizer's step stay the caller's; ``statistics().norm`` is
        the norm of the shared parameters' gradient. A step with one task is a plain backward pass: its weight is 1, and
        there is no K to tell a norm from.

        Without ``losses``, surgery on the gradients that the heads left at the features of ``detach`` (form B), followed by one
        backward pass through the trunk; or on those that ``collect`` gathered.

        With several tasks all is computed before anything is written. A gradient that is not finite makes the shared parameters'
        NaN, and leaves the method's memory as it is; the heads of the other tasks are not touched by it. Hooks change each task's
        gradient as in a backward pass of its own; one on a tensor where the tasks part, or near it, may see it two or three times.
        On the CPU gradients of wide layers are not formed task by task, where K costs less without them (``capture.ghost``): a hook
        on such a layer's own node of autograd's graph finds None for the weight.

        With ``process_group=`` the model is on every rank, and ``.grad`` becomes what one process would find for the whole batch,
        on every rank the same bits: no further averaging of gradients is needed, nor done by DistributedDataParallel, whose hooks
        these passes do not reach. Each task's gradient is summed shard by shard while the next task's pass runs, and the combined
        one is brought back. A rank may lack tasks, or all of them (None); losses that no rank has are refused, as by one process.
        Sparse gradients become dense. With ``sync="local"`` each rank does what it would do alone, and what it would write is
        averaged.

        Shared parameters may be DTensors, of FSDP2 (``fully_shard``), tensor parallelism, or both, with the whole mesh, or
        ``group.WORLD``, as ``process_group``. Each task's gradients are then those that the wrapper's hooks reduce, in one backward
        pass a task after the other; surgery is on the shards, and one small all-reduce of K more is sent. FSDP2 gathers parameters
        for each pass again; they stay for all with ``set_reshard_after_backward(False)`` before this call and ``reshard()`` after
        it, on each wrapped module. Every rank gives a loss of every task, if need be one of 0 times its output. ``shared`` is a
        module, or parameters listed before the forward pass. Not with ``inputs``, ``accumulate=False``, ``gram_on``, "low" or
        "batched". What the heads got stays if surgery fails.

        Args:
            losses: a scalar a task, by name or in the order of the tasks, None for an absent one; a list where a task has several
                batches. From one forward pass, or several. Methods that ask for the losses are told them.
            shared: a module, parameters, or named parameters (which ``group_by="layer"`` needs); frozen ones are left out. None:
                all leaves that two tasks reach. Needed with ``process_group=``, the same on every rank.
            inputs: the only leaves to get gradients, as in ``torch.autograd.backward``; None: all. With ``process_group=`` the same
                on every rank; needed where ranks differ in the tasks of their first step.
            retain_graph: keep the graph for another backward pass.
            scaler: a ``torch.amp.GradScaler``, which multiplies the losses: hand them over as they are. ``.grad`` is scaled as
                after ``scaler.scale(loss).backward()``; what decides is not, nor are the statistics.
            accumulate: add to ``.grad``; False: replace it, where a loss reaches.
            gram_on: a module or parameters on whose gradients K is measured, such as the last block that is shared: the T backward
                passes end there, and one weighted pass goes on. The weights and the statistics are those of another K. Not with
                ``process_group=``, whose K is of shards of all T gradients; nor is "low".
            memory: "low" keeps no more than a small part of the T gradients at a time: K is gathered layer by layer, and one more,
                weighted, backward pass brings the result. The same result, but for hooks that are not linear, and for rounding,
                which happens before the weights multiply rather than after. Where the graph has no narrow place (a U-Net), parts of
                it run several times. Of a checkpointed block the T gradients are there together, as it is recomputed as a whole.
            passes: "batched": one backward pass of all tasks by ``torch.vmap``, from where they part on; faster for small models on
                a GPU, and not for every module.

        Raises:
            TypeError, ValueError: losses that are no scalars, do not require grad or have unknown names; no loss; a parameter that
                is listed twice or is no leaf; nothing shared; a method that does not work from K with ``gram_on`` or "low";
                parameters that differ from rank to rank.
            RuntimeError: nothing was captured; a graph that an earlier backward pass has used up; a re-entrant checkpoint; several
                processes without ``process_group=``, whose gradients nobody would average; a rank that did not come.
        """
        if losses is None:
            self._backward_captured(scaler, accumulate)
            return
        check_choice("memory", memory, ("full", "low"))
        check_choice("passes", passes, ("sequential", "batched"))
        check_bool("retain_graph", retain_graph)
        check_bool("accumulate", accumulate)
        on = None if gram_on is None else listed(gram_on, "gram_on")
        with self._history.held(), self._names_undone_on_error(), self._losses_forgotten():
            batch = self._batch(losses, shared, inputs, scaler)
            if is_sharded(batch.shared):
                check_plain(inputs=inputs, accumulate=accumulate, gram_on=gram_on, memory=memory, passes=passes)
                self._backward_sharded(batch, retain_graph)
            else:
                self._backward(batch, retain_graph, accumulate, on, memory, passes)
                if self._ranks is not None:
                    check_not_gathered(batch.shared or [])

    def collect(
        self,
        losses: TaskLosses,
        shared: Parameters | None = None,
        inputs: Parameters | None = None,
        retain_graph: bool = False,
        scaler: Any = None,
    ) -> None:
        """The tasks' gradients of one more batch, kept for the next ``backward``, which operates on the sums over all batches.

        Gradient accumulation with the surgery of one large batch, which the sum of surgeries is not: ``collect`` every micro-batch
        but the last, and ``backward`` the last, or ``backward()`` after all. Nothing is in ``.grad`` before. The T gradients stay
        in memory in between, but not in ``state_dict()``; ``reset`` drops them. A micro-batch may have one task's losses alone.

        Args, Raises: as for ``backward``.
        """
        check_bool("retain_graph", retain_graph)
        with self._names_undone_on_error():
            batch = self._batch(losses, shared, inputs, scaler)
            check_whole(batch.shared, "collect")
            self._collected = self._gathered(batch, retain_graph, "sequential")

    def total(
        self,
        losses: TaskLosses,
        shared: Parameters | None = None,
        inputs: Parameters | None = None,
        retain_graph: bool = False,
        accumulate: bool = True,
        *,
        gram_on: Parameters | None = None,
        memory: str = "full",
        passes: str = "sequential",
    ) -> Tensor:
        """The sum of the losses, whose ``.backward()`` is ``backward(losses, ...)``: for whoever calls that himself.

        A factor by which it is multiplied on the way, such as a loss scale or one over the number of micro-batches, multiplies the
        gradients and decides nothing: multiply it by a gradient scaler's scale, not the losses. It can be propagated once, unless
        ``retain_graph`` is given here; ``inputs=`` of an outer backward pass, or ``torch.autograd.grad``, finds no parameters
        behind it. What ``collect`` gathered before is added, as by ``backward``.

        Args, Raises: as for ``backward``.

        Returns:
            []
        """
        check_choice("memory", memory, ("full", "low"))
        check_choice("passes", passes, ("sequential", "batched"))
        check_bool("retain_graph", retain_graph)
        check_bool("accumulate", accumulate)
        on = None if gram_on is None else listed(gram_on, "gram_on")
        with self._names_undone_on_error():
            batch = self._batch(losses, shared, inputs, None)
            check_whole(batch.shared, "total")
            self._check_one_pass(on, memory, passes)

        used: list[Tensor] = []

        def run(scale: Tensor) -> None:
            if used and not retain_graph:
                raise RuntimeError(
                    "total: expected one backward pass, found another. For several pass retain_graph=True to total()."
                )
            used.append(scale)
            batch.scale = scale.to(torch.float64)
            with self._history.held(), self._losses_forgotten():
                self._backward(batch, retain_graph, accumulate, on, memory, passes)

        present = list(batch.values.values())
        value = torch.stack(present).sum() if present else torch.zeros((), device=batch.device)
        return Called.apply(torch.zeros((), requires_grad=True, device=value.device), value, run)  # type: ignore[no-any-return]

    # --- what goes in -------------------------------------------------------------------------------------------------------

    def _batch(self, losses: TaskLosses, shared: Parameters | None, inputs: Parameters | None, scaler: Any) -> Batch:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("backward: expected to be called outside torch.inference_mode(), whose tensors .grad cannot hold.")
        if self._joining:
            raise RuntimeError(
                "backward: expected no losses inside join(), as a rank that has left its loop takes part in steps of split() and "
                "detach() alone; found some. Give every rank the same number of steps: one that has no batch "
                "left calls backward() with None for every loss."
            )
        given = None if shared is None else listed(between_steps(shared), "shared")
        if self._ranks is None and several_processes() and not is_sharded(given):
            raise RuntimeError(
                f"backward: expected one process, found {torch.distributed.get_world_size()}. The gradients of losses do not pass "
                "through DistributedDataParallel's hooks, so nobody would average them. Build the aggregator with process_group= "
                "(torch.distributed.group.WORLD), whose ranks make one step of all their batches together."
            )
        if self._group_by == SAMPLE:
            raise ValueError(
                "group_by: expected 'layer', 'tensor' or a function for surgery on parameters, whose gradients are sums over the "
                "samples of a batch; found 'sample'. Use split() or detach()."
            )
        found = task_losses(losses, 1 if self._ranks is None else 0)
        names = list(losses) if isinstance(losses, Mapping) else self._names.present(len(found))
        for name in names:
            self._names.index(name)
        wanted = None if inputs is None else {id(p.tensor): p for p in listed(inputs, "inputs")}
        if wanted is not None and not wanted:
            raise ValueError("inputs: expected parameters to give gradients to, found none; leave it out for all.")
        here = [t for t, own in enumerate(found) if own]
        if self._ranks is not None:
            here.sort(key=lambda t: self._names.index(names[t]))  # the ranks' messages are in one order
        if self._together is not None and given is None:
            raise ValueError(
                "shared: expected the parameters that the tasks share, with process_group=, as every rank has to send the same "
                "ones; found None. Pass the trunk."
            )
        if self._together is not None and given is not None:
            check_operable([p.tensor for p in given])
            self._check_names(given)
        if given and wanted is not None and not any(id(p.tensor) in wanted for p in given):
            raise ValueError("shared: expected some of the parameters that inputs= names, found none of them.")
        batch = Batch([names[t] for t in here], [found[t] for t in here], given, wanted)
        batch.scale = None if scaler is None else scale_of(scaler, batch.device)
        return batch

    @contextmanager
    def _names_undone_on_error(self) -> Iterator[None]:
        """Forgets the names of a step that fails."""
        known = list(self._names.known)
        try:
            yield
        except BaseException:
            self._names.known[:] = known
            raise

    @contextmanager
    def _losses_forgotten(self) -> Iterator[None]:
        """Whatever becomes of a step, its losses are not the next one's."""
        try:
            yield
        finally:
            self._losses = {}

    # --- T backward passes, and then surgery --------------------------------------------------------------------------------

    def _backward(
        self, batch: Batch, retain_graph: bool, accumulate: bool, on: list[Parameter] | None, memory: str, passes: str
    ) -> None:
        self._check_one_pass(on, memory, passes)
        weighted = self.method.spec.family in WEIGHTED and self._group_by is None
        if self._together is not None:
            whole = self._collected is not None or passes == "batched"
            gathered = partial(self._gathered, batch, retain_graph, passes) if whole else None
            self._over_ranks(batch, retain_graph, accumulate, gathered)
            self._collected = None
        elif len(batch.names) == 1 and self._collected is None and accumulate and batch.wanted is None and self._ranks is None:
            self._plainly(batch, retain_graph)
        elif weighted and len(batch.names) > 1 and batch.shared != [] and self._collected is None and passes == "sequential":
            self._in_one_pass(batch, retain_graph, accumulate, on, memory)
        else:
            self._finish(self._gathered(batch, retain_graph, passes), batch.scale, accumulate)
            self._collected = None

    def _plainly(self, batch: Batch, retain_graph: bool) -> None:
        """One task: torch's own backward pass."""
        losses = batch.losses[0]
        if batch.shared and not reaches(edges_of(losses), [p.tensor for p in batch.shared]):
            check_shared([], batch.shared, 1)
        self._spare.clear()
        torch.autograd.backward(losses, batch.seeds(losses), retain_graph=retain_graph)
        self._plain_step(batch.names[0], losses[0].device, self._losses or batch.values)

    def _gathered(self, batch: Batch, retain_graph: bool, passes: str) -> Collected:
        """What was collected, and every task's gradients of one more batch."""
        self._spare.clear()
        if not batch.names:
            return (self._collected or Collected()).plus(batch, {}, {})
        graph = batch.graph()
        rows = batched_rows(graph, batch, retain_graph) if passes == "batched" else rows_of(graph, batch, retain_graph)
        return (self._collected or Collected()).plus(batch, graph.leaves, rows)

    def _backward_captured(self, scaler: Any, accumulate: bool) -> None:
        """Surgery on what was collected."""
        if self._collected is None:
            raise RuntimeError(
                "backward: no detached features are waiting, and no collected gradients. Call detach() before the heads and "
                "backward() once after them, or give the losses; what total() returned has a backward() of its own."
            )
        collected = self._collected
        batch = Batch([], [], collected.shared, collected.wanted)
        device = next((loss.device for loss in collected.losses.values()), batch.device)
        batch.scale = None if scaler is None else scale_of(scaler, device)
        with self._losses_forgotten():
            if self._together is not None:
                self._over_ranks(batch, False, accumulate, partial(collected.plus, batch, {}, {}))
            else:
                self._finish(collected, batch.scale, accumulate)
        self._collected = None

    def _finish(self, collected: Collected, scale: Tensor | None, accumulate: bool) -> None:
        """Surgery on gathered gradients, and everything into ``.grad``, multiplied by the scale."""
        shared = collected.operated()
        names = [name for name in self._names.known if name in collected.tasks]
        if names or self._ranks is None:
            check_shared(shared, collected.shared, len(names))
        operate = shared if len(names) > 1 else []
        if len(names) == 1:
            self._plain_step(names[0], next(iter(collected.leaves.values())).device, self._losses or collected.losses)
        self._check_names(operate)
        columns = [Column.of(p.tensor, collected.rows[id(p.tensor)], names) for p in operate]
        held = [p.tensor.grad for p in operate]
        factor = ratio(scale, collected.scale)
        adds = accumulate and factor is None and self._ranks is None
        in_place = adds and all(column.touched is None for column in columns) and all(map(writable, held))
        targets = [grad for grad in held if grad is not None] if in_place else [column.target for column in columns]
        operated = {id(p.tensor) for p in operate}
        others = [key for key, rows in collected.rows.items() if rows and key not in operated]
        sums = [plain_sum(collected.rows[key], collected.leaves[key]) for key in others]
        if operate:
            self._losses = self._losses or {**collected.losses}
            given = TaskGradients(entries(columns, len(names)), len(names))
            paths = [p.name for p in operate]
            self._surgery(given, names, lambda: paths, targets, None, in_place, collected.scale, "parameters")
        if factor is not None:
            for gradient in [*targets, *sums]:
                gradient.mul_(factor.to(gradient))
        done = targets if in_place else [column.combined for column in columns]
        written = [*zip((p.tensor for p in operate), done, strict=True)]
        written += zip((collected.leaves[key] for key in others), sums, strict=True)
        self._write(written, collected.shared, collected.wanted, names, accumulate)

    # --- one weighted backward pass, where K alone decides --------------------------------------------------------------------

    def _in_one_pass(self, batch: Batch, retain_graph: bool, accumulate: bool, on: list[Parameter] | None, memory: str) -> None:
        """K from as many gradients as it takes, and one backward pass for those that were not kept."""
        graph = batch.graph()
        shared = shared_leaves(graph, batch.shared, len(batch.names))
        present = reaching(graph, list(shared.values()), len(batch.names))
        plan = OnePass(graph, batch.flows(), shared, retain_graph)
        device = next(iter(shared.values())).device
        if memory == "low":
            self._spare.clear()
        self._losses = self._losses or {**batch.values}
        with self._undone_on_error():
            weights = self._kept(batch.names, present, device)
            if weights is not None:
                self._spare.clear()
                plan.to_where_tasks_part()
            else:
                weights = self._found(batch, plan, shared, present, on, memory)
            written = plan.finish(weights)
        self._write(written, batch.shared, batch.wanted, batch.names, accumulate)
        self._spare.keep(shared.values(), plan.rows_to_spare)

    def _found(
        self,
        batch: Batch,
        plan: OnePass,
        shared: dict[int, Tensor],
        present: Sequence[bool],
        on: list[Parameter] | None,
        memory: str,
    ) -> Tensor:
        """The weights of a step, from as many gradients as it takes. [T]"""
        if on is not None:
            K = plan.gram_on(measured_leaves(on, shared), self._spare)
        else:
            K = plan.gram_without_rows() if memory == "low" else plan.gram(self._spare)
        return self._decide(K if batch.scale is None else K / safe(batch.scale) ** 2, batch.names, present)

    def _check_one_pass(self, on: list[Parameter] | None, memory: str, passes: str) -> None:
        """Raises where the weights are to be had for less than all gradients, and cannot."""
        if on is None and memory == "full":
            return
        asked = "gram_on" if on is not None else "memory"
        if self._together is not None:
            raise ValueError(
                f"{asked}: expected none with process_group=, whose ranks hold 1/{self._together.size} of the T gradients each and "
                "measure K on all of it; found one. Leave it out."
            )
        self._check_weighted(asked, f"one weighted backward pass ({asked}=)")
        if self._group_by is not None:
            raise ValueError(
                f"{asked}: expected one surgery on all parameters, as one weighted backward pass has one weight a task; found "
                f"group_by={self._group_by!r}."
            )
        if passes != "sequential":
            raise ValueError(f"passes: expected 'sequential' with {asked}=, found {passes!r}.")
        if self._collected is not None:
            raise ValueError(
                f"{asked}: expected no collected gradients, which are whole already, found some of "
                f"{', '.join(sorted(self._collected.tasks))}. Leave {asked}= out, or reset() to drop them."
            )

    def _check_names(self, shared: Sequence[Parameter]) -> None:
        """Raises where parameters without names are to be grouped by them."""
        if self._group_by not in (None, "tensor") and any(p.name.startswith("[") for p in shared):
            raise ValueError(
                f"shared: expected named parameters for group_by={self._group_by!r}, found some without names. Pass a module, or "
                "its named_parameters()."
            )


def scale_of(scaler: Any, device: torch.device) -> Tensor:
    """By which a gradient scaler multiplies losses, without waiting for it. [] float64"""
    if not hasattr(scaler, "scale"):
        raise TypeError(f"scaler: expected a torch.amp.GradScaler, found {type(scaler).__name__}.")
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale.to(torch.float64)
