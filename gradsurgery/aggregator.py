"""``GradientAggregator``: capture -> gram -> weights -> combine, at the boundary of a trunk and its heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradsurgery.capture.batch import Batch
from gradsurgery.capture.detach import Detached
from gradsurgery.capture.features import Features, passes_through
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.grouping import SAMPLE, GroupBy, check_samples
from gradsurgery.capture.parameters import Parameters, TaskLosses
from gradsurgery.capture.split import split
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.capture.traced import enroll, split_in_graph
from gradsurgery.distributed import SyncMode, checked_ranks
from gradsurgery.distributed.joining import joined
from gradsurgery.functional import Gradient, Gradients, checked_targets, second_batch
from gradsurgery.methods import Method, build
from gradsurgery.methods.registry import check_takes_against
from gradsurgery.parameter_space import ParameterSpace
from gradsurgery.spare import Spare


class GradientAggregator(ParameterSpace):
    """Gradient surgery for a multi-task network, on the gradients of its shared representation or of its shared parameters.

    Form A, one line between trunk and heads::

        surgery = GradientAggregator("pcgrad")
        z_seg, z_depth = surgery.split(trunk(x), 2)
        (ce(seg(z_seg), y) + l1(depth(z_depth), d)).backward()

    Form B, one head's graph in memory at a time::

        d = surgery.detach(trunk(x))
        for head, y in zip(heads, targets):
            loss(head(d), y).backward()
        surgery.backward()

    Both give the trunk the gradient of the representation that the method makes of the T tasks' gradients, which is a proxy for
    surgery on the trunk's parameters: the sign of a conflict can differ between the two.

    Form C, on the parameters themselves, one backward pass a task::

        z = trunk(x)
        surgery.backward({"seg": ce(seg(z), y), "depth": l1(depth(z), d)})

    Every head gets its own gradient unchanged. ``eval()`` and ``torch.no_grad()`` pass features through. The state (PCGrad's order
    counter, the step) is in ``state_dict()``.

    Args:
        method: a name of ``gradsurgery.methods()``, or a built method; the method's options follow as keywords.
        tasks: the tasks' names, or their number. Without it tasks are numbered, or named as they first appear.
        group_by: surgery of its own for each group of tensors: "tensor", "layer" (those whose names differ in the last component
            alone), or a function from a tensor's name to its group. Names are key paths of features such as ``['p3']``, a module's
            names of its parameters, and positions such as ``[0]`` in ``aggregate``. "sample": for each sample of a batch, which is
            the first dimension of all features; not in parameter space, nor for methods with memory of a group. None: one surgery
            on all of them. Surgery by group is another algorithm than surgery on the whole (but for methods that treat every
            coordinate by itself); weights and K are then [G, T], [G, T, T], with the B samples for groups [B, T], [B, T, T].
        every: for how many steps weights are used: they are found in one, and serve the others after it, unless other tasks are
            present. Weights that are not finite are not kept: the last ones go on, or, where there are none, weights of 1. For
            methods whose weights K alone decides.
        history: how many past steps ``history`` keeps (two small tensors each); None: 1024, or with ``group_by="sample"``, where
            there are so many of them as samples, the last one.
        process_group: the processes among which the batch is divided, as a process group (``torch.distributed.group.WORLD``) or a
            DeviceMesh: surgery is that of one process with the whole batch, where the loss of a task is the mean of the ranks' (as
            DistributedDataParallel and FSDP have it). Needs ``tasks``, and a method that K decides. Every rank takes part in every
            step (``take_part``, ``join``). Building the aggregator is collective, and makes a communicator that lasts as long as
            torch.distributed. With ``every``, weights serve whichever tasks are present, and all count as present in between.
        sync: "local": every rank operates on the gradients of its own samples, and what the ranks found is averaged. Another
            algorithm, whose result depends on how the batch is divided; without a message in ``split`` and ``detach``.

    Raises:
        ValueError, TypeError: an unknown method or option; repeated names; a process group without ``tasks``, with another method,
            or with options that differ from rank to rank.
    """

    def __init__(
        self,
        method: str | Method = "pcgrad",
        *,
        tasks: Sequence[str] | int | None = None,
        group_by: GroupBy | None = None,
        every: int = 1,
        history: int | None = None,
        process_group: Any = None,
        sync: SyncMode = "global",
        **options: Any,
    ) -> None:
        built, names = build(method, **options), TaskNames(tasks)
        ranks = checked_ranks(process_group, sync, built, names, {"group_by": group_by, "every": every})
        super().__init__(built, names, group_by, every, history, ranks, sync)
        self._detached: Detached | None = None
        self._number = enroll(self._surgery)  # by which a compiled graph knows this object

    # --- form A -------------------------------------------------------------------------------------------------------------

    def split(self, features: Any, tasks: Sequence[str] | int | None = None) -> tuple[Any, ...]:
        """One view of the features a task; surgery runs inside the backward pass.

        Args:
            features: the trunk's output: a tensor, or any pytree of tensors.
            tasks: how many views, or the names of the tasks present in this step; by default all declared tasks.

        Returns:
            T views, each of the structure of ``features``. A view that no loss uses is an absent task.

        In a function that torch.compile compiles there is no graph break, and a step is the same but for this: an output that no
        loss uses has a gradient of zeros there, so that a task whose loss would be taken outside of the function counts as present,
        with zeros. Name the tasks that are present (each set of names compiles once), or take the losses inside. And torch cannot
        refuse that a view which leaves the function is overwritten, and with it the others.

        Raises:
            ValueError: features without grad, an unknown or repeated name, no task, or a number that contradicts the names; with
                ``group_by="sample"``, features without a batch, or of different ones.
            TypeError: features without a tensor.
            RuntimeError: (in backward) losses that are propagated one by one; ``create_graph``; or, compiled, ``retain_graph``.
        """
        names = self._names.present(tasks)
        if passes_through(self.training):
            return (features,) * len(names)
        taken = self._features(features, "split")
        if torch.compiler.is_compiling():
            return split_in_graph(taken, self._number, names, [] if self._group_by in (None, SAMPLE) else taken.paths)
        return split(taken, len(names), lambda grads: self._surgery(grads, names, lambda: taken.paths))

    def _features(self, features: Any, caller: str) -> Features:
        taken = Features.of(features, caller)
        if self._by_sample:
            check_samples([tensor.shape for tensor in taken.tensors], lambda: taken.paths)
        return taken

    # --- form B -------------------------------------------------------------------------------------------------------------

    def detach(self, features: Any) -> Any:
        """The features, cut off from the trunk; each ``backward()`` that reaches them is one task, in order or by name (``task``).

        Raises:
            RuntimeError: the features of an earlier ``detach`` still wait for ``backward()``; or this is being compiled.
            ValueError: features without grad; or as for ``split`` with ``group_by="sample"``.
            TypeError: features without a tensor.
        """
        if passes_through(self.training):
            return features
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "detach: it cuts autograd's graph in two, which a compiled function cannot. Compile trunk and heads, and call "
                "detach() between them; or use split()."
            )
        if self._detached is not None:
            raise RuntimeError(
                "detach: the features of an earlier detach() still wait for backward(). Call backward() once a step, after the "
                "heads, or reset() to drop a step that was given up."
            )
        self._detached = Detached(self._features(features, "detach"))
        return self._detached.tree

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Names the task of every backward inside, so that tasks may be absent, repeated, or come in any order.

        Needed, too, where one task runs several backward passes (re-entrant checkpointing of features in a head).

        Raises:
            ValueError: a name that was not declared.
            RuntimeError: there are no detached features.
        """
        self._names.index(name)
        if passes_through(self.training):
            yield
            return
        detached = self._pending("task")
        outer, detached.name = detached.name, name
        try:
            yield
        finally:
            detached.name = outer

    def _backward_captured(self, scaler: Any, accumulate: bool) -> None:
        if self._detached is None:
            super()._backward_captured(scaler, accumulate)
        elif scaler is not None:
            raise ValueError("scaler: expected none after detach(), whose heads' losses the caller has scaled; found one.")
        else:
            self._backward_detached()

    # --- several processes --------------------------------------------------------------------------------------------------

    def take_part(self, device: torch.device | str | None = None, loss: Tensor | None = None) -> None:
        """This rank's part of a step in which no backward pass reaches its features: a batch without a label, or no batch left.

        The others wait for it, as surgery is of all ranks' gradients. Here nothing is written, the step is counted, and features
        that ``detach`` gave are dropped.

        Args:
            device: where the model lies; None: where ``loss`` does, or the CPU.
            loss: what this rank propagates all the same, for the sake of the messages of a wrapped model: zero times what its
                forward pass came to before ``split`` (``features.sum() * 0.0``). It is propagated here, in the midst, since the
                others come to surgery before they have sent all of theirs, and after some.

        Raises:
            RuntimeError: there is no process group; with groups of tensors, no earlier step has told which there are; gradients
                have reached the features of ``detach``, or ``loss`` reaches those of ``split``; or another rank did not come.
        """
        if self._ranks is None:
            raise RuntimeError("take_part: expected an aggregator with process_group=; without one nobody waits for this process.")
        if self._detached is not None:
            if self._detached.named or self._detached.unnamed:
                raise RuntimeError(
                    "take_part: expected a step without a task, found gradients at the features of detach(). Call backward()."
                )
            self._detached.release()
            self._detached = None
        if device is None:
            device = "cpu" if loss is None else loss.device
        finish = None if self._together is None else self._absent(torch.device(device))
        if loss is not None:
            self._takes_part = True
            try:
                loss.backward()
            finally:
                self._takes_part = False
        if finish is not None:
            finish()

    def join(
        self,
        model: Any,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Any:
        """A context manager for a loop whose ranks have different numbers of batches, instead of the one of ``model.join()``.

        A rank that has left its loop takes part in the others' steps without a task until they have left theirs: in the messages
        of DistributedDataParallel, and in those of this aggregator and of any other in the model, each of which makes one step of
        ``split`` or ``detach`` a forward pass. Its loss is zero there, and still counts in the mean over the ranks.

        Args:
            model: a DistributedDataParallel.
            divide_by_initial_world_size, enable, throw_on_early_termination: as of ``DistributedDataParallel.join``. The mean over
                the ranks that are left (False) needs a method that does not ask how long the gradients are.

        Raises:
            TypeError: ``model`` is no DistributedDataParallel.
            ValueError: the ranks of an aggregator are not those of ``model``; or such a method with a mean over those left.
        """
        return joined(model, [self], divide_by_initial_world_size, enable, throw_on_early_termination)

    def train(self, mode: bool = True) -> GradientAggregator:
        """As any module's; out of training no memory is held for the next step."""
        if not mode:
            self._spare.clear()
        super().train(mode)
        return self

    def _batch(self, losses: TaskLosses, shared: Parameters | None, inputs: Parameters | None, scaler: Any) -> Batch:
        if self._detached is not None:
            raise RuntimeError(
                "backward: the features of detach() wait for backward() without losses. Call that first, or reset() to drop a step "
                "that was given up."
            )
        return super()._batch(losses, shared, inputs, scaler)

    def _backward_detached(self) -> None:
        """Surgery on the gradients that the heads left at the detached features, then one backward through the trunk."""
        detached = self._pending("backward")
        names, rows = self._captured(detached)
        self._detached = None
        tensors = detached.features.tensors
        combined = self._surgery(TaskGradients([g for row in rows for g in row], len(rows)), names, lambda: detached.features.paths)
        detached.release()
        del rows  # the captured gradients, before the trunk's backward needs its memory
        reached = [(t, g) for t, g in zip(tensors, combined, strict=True) if g is not None]
        torch.autograd.backward([t for t, _ in reached], [g for _, g in reached])

    def reset(self) -> None:
        """Drops a step that was given up: detached features, collected gradients, observed losses; and memory held for the next."""
        self._losses = {}
        self._collected = None
        self._spare.clear()
        if self._detached is not None:
            self._detached.release()
            self._detached = None

    def _pending(self, caller: str) -> Detached:
        if self._detached is None:
            raise RuntimeError(
                f"{caller}: no detached features are waiting. Call detach() before the heads, and backward() once after them."
            )
        return self._detached

    def _captured(self, detached: Detached) -> tuple[list[str], list[list[Tensor | None]]]:
        """Names and rows [T][P] of the tasks that came."""
        if detached.named and detached.unnamed:
            raise RuntimeError(
                f"backward: {len(detached.unnamed)} backward passes came without a name beside {sorted(detached.named)}. Wrap each "
                "in `with surgery.task(name):`, or none."
            )
        if detached.named:
            names = [name for name in self._names.known if name in detached.named]
            return names, [detached.named[name] for name in names]
        rows = list(detached.unnamed.values())
        if not rows:
            raise RuntimeError(
                "backward: no head's backward reached the detached features. Call .backward() on each task's loss first."
            )
        if self._names.declared and len(rows) != len(self._names):
            raise RuntimeError(
                f"backward: {len(rows)} backward passes reached the features, and {len(self._names)} tasks are declared "
                f"({self._names}). Call backward() on each task's loss rather than on their sum; where tasks may be "
                "absent, wrap each in `with surgery.task(name):`."
            )
        return self._names.present(len(rows)), rows

    # --- explicit gradients -------------------------------------------------------------------------------------------------

    def aggregate(
        self,
        grads: Gradients,
        losses: Mapping[str, Tensor] | Sequence[Tensor | None] | Tensor | None = None,
        *,
        out: Any = None,
        against: Gradients | None = None,
    ) -> Gradient:
        """One step of surgery on gradients that the caller has: ``gradsurgery.aggregate`` with this aggregator's memory and tasks.

        Args:
            grads: as for ``gradsurgery.gram``, in the order of ``tasks``, None for an absent one.
            losses: the tasks' losses, for methods that ask for them; as for ``observe``, which may have told them before.
            out: where to write, of one task's form; may be one of the gradients.
            against: the gradients of a second batch, of the form of ``grads``, for methods that multiply two batches' gradients.

        Returns:
            The gradient, of one task's form; ``out`` where given. Not differentiable.

        Raises:
            TypeError, ValueError: as for ``gradsurgery.aggregate``; or a number of tasks that contradicts those known.
        """
        given = TaskGradients.of(grads)
        if against is not None:
            check_takes_against(self.method)
        second = None if against is None else second_batch(given, against)
        targets = None if out is None else checked_targets(given, out)
        if self._names.declared and given.tasks != len(self._names):
            raise ValueError(
                f"grads: expected {len(self._names)} tasks ({self._names}), found {given.tasks}; give None for an absent one."
            )
        names = self._names.present(given.tasks)
        if losses is not None:
            self.observe(losses.unbind() if isinstance(losses, Tensor) else losses)
        result = self._surgery(given, names, lambda: [f"[{p}]" for p in range(given.pieces)], targets, second, kind="gradients")
        return (result[0] if given.single else result) if out is None else out  # type: ignore[return-value]

    # --- as a module --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, has the state but neither listeners nor a step that is under way."""
        fresh: dict[str, Any] = {"_history": self._history.alone(), "_detached": None, "_collected": None, "_losses": {}}
        fresh |= {"_spare": Spare(), "_domain": None}
        return {**self.__dict__, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = enroll(self._surgery)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.method}, tasks={list(self._names.known)}"

    def forward(self, features: Any, tasks: Sequence[str] | int | None = None) -> tuple[Any, ...]:
        """``split``, so that the aggregator can stand in a model like any module."""
        return self.split(features, tasks)
