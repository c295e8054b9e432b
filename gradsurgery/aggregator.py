"""``GradientAggregator``: capture -> gram -> weights -> combine, at the boundary of a trunk and its heads."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradsurgery import ops
from gradsurgery.capture.detach import Detached
from gradsurgery.capture.features import Features, passes_through
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.grouping import GroupBy, group_labels
from gradsurgery.capture.losses import scalar_loss, stacked
from gradsurgery.capture.split import split
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.functional import Gradient, Gradients, checked_targets, second_batch
from gradsurgery.memory import MethodMemory
from gradsurgery.methods import Method, Solution, Step, build
from gradsurgery.methods.registry import check_takes_against
from gradsurgery.monitor import Statistics
from gradsurgery.options import check_integer

StepHook = Callable[[Statistics, Tensor], None]
L = TypeVar("L", bound=Mapping[str, Tensor] | Sequence[Tensor | None])


class GradientAggregator(MethodMemory):
    """Gradient surgery on the shared representation of a multi-task network.

    Form A, one line between trunk and heads::

        surgery = GradientAggregator("pcgrad")
        z_seg, z_depth = surgery.split(trunk(x), 2)
        (ce(seg(z_seg), y) + l1(depth(z_depth), d)).backward()

    Form B, one head's graph in memory at a time::

        d = surgery.detach(trunk(x))
        for head, y in zip(heads, targets):
            loss(head(d), y).backward()
        surgery.backward()

    Both give the trunk the gradient of the representation that the method makes of the T tasks' gradients, and every head its own
    gradient unchanged. ``eval()`` and ``torch.no_grad()`` pass features through. The state (PCGrad's order counter, the step) is in
    ``state_dict()``. Surgery on the representation is a proxy for surgery on the trunk's parameters: the sign of a conflict can
    differ between the two.

    Args:
        method: a name of ``gradsurgery.methods()``, or a built method; the method's options follow as keywords.
        tasks: the tasks' names, or their number. Without it tasks are numbered, or named as they first appear.
        group_by: surgery of its own for each group of the features' tensors: "tensor", "layer" (those whose names differ in the
            last component alone), or a function from a tensor's name to its group. Names are key paths such as ``['p3']``, and
            positions such as ``[0]`` in ``aggregate``. None: one surgery on all of them. Surgery by group is another algorithm than
            surgery on the whole (but for methods that treat every coordinate by itself); weights and K are then [G, T], [G, T, T].
        history: how many past steps ``history`` keeps (two small tensors each).

    Raises:
        ValueError, TypeError: an unknown method or option; repeated names.
    """

    def __init__(
        self,
        method: str | Method = "pcgrad",
        *,
        tasks: Sequence[str] | int | None = None,
        group_by: GroupBy | None = None,
        history: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(build(method, **options), TaskNames(tasks))
        self._group_by = group_by
        if group_by is not None:
            group_labels((), group_by)  # refuses what is no grouping
        check_integer("history", history, at_least=1)
        self._history: deque[Statistics] = deque(maxlen=history)
        self._detached: Detached | None = None
        self._step_hooks: OrderedDict[int, StepHook] = OrderedDict()
        self._losses: dict[str, Tensor | float] = {}

    # --- form A -------------------------------------------------------------------------------------------------------------

    def split(self, features: Any, tasks: Sequence[str] | int | None = None) -> tuple[Any, ...]:
        """One view of the features a task; surgery runs inside the backward pass.

        Args:
            features: the trunk's output: a tensor, or any pytree of tensors.
            tasks: how many views, or the names of the tasks present in this step; by default all declared tasks.

        Returns:
            T views, each of the structure of ``features``. A view that no loss uses is an absent task.

        Raises:
            ValueError: features without grad, an unknown or repeated name, no task, or a number that contradicts the names.
            TypeError: features without a tensor.
        """
        names = self._names.present(tasks)
        if passes_through(self.training):
            return (features,) * len(names)
        taken = Features.of(features, "split")
        return split(taken, len(names), lambda grads: self._surgery(grads, names, lambda: taken.paths))

    # --- form B -------------------------------------------------------------------------------------------------------------

    def detach(self, features: Any) -> Any:
        """The features, cut off from the trunk; each ``backward()`` that reaches them is one task, in order or by name (``task``).

        Raises:
            RuntimeError: the features of an earlier ``detach`` still wait for ``backward()``.
            ValueError: features without grad.
            TypeError: features without a tensor.
        """
        if passes_through(self.training):
            return features
        if self._detached is not None:
            raise RuntimeError(
                "detach: the features of an earlier detach() still wait for backward(). Call backward() once a step, after the "
                "heads, or reset() to drop a step that was given up."
            )
        self._detached = Detached(Features.of(features, "detach"))
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

    def backward(self) -> None:
        """Surgery on the gradients that the heads left at the detached features, then one backward through the trunk.

        Raises:
            RuntimeError: nothing is detached (``backward`` was called twice, or before ``detach``); no head's backward reached the
                features; named and unnamed backwards are mixed; or fewer, or more, unnamed ones came than tasks were declared.
        """
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
        """Drops detached features that will not be propagated, and observed losses, after an error in the middle of a step."""
        self._losses = {}
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
        result = self._surgery(given, names, lambda: [f"[{p}]" for p in range(given.pieces)], targets, second)
        return (result[0] if given.single else result) if out is None else out  # type: ignore[return-value]

    # --- one step -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _surgery(
        self,
        given: TaskGradients,
        names: Sequence[str],
        paths: Callable[[], Sequence[str]],
        targets: Sequence[Tensor] | None = None,
        against: TaskGradients | None = None,
    ) -> list[Tensor | None]:
        """gram -> weights -> combine over the tasks of one step. [P]

        Args:
            given: the gradients of the tasks ``names``.
            names: of the tasks of this step.
            paths: gives the names of the positions. [P]
            targets: where to write; without them the results are new, and None where no task has a gradient. [P]
            against: of a second batch, at the positions that ``given`` reaches.
        """
        told, self._losses = self._losses, {}  # whatever becomes of this step, they are not the next one's
        result: list[Tensor | None] = [None] * given.pieces if targets is None else list(targets)
        reached = given.reached()
        if targets is not None:
            for p in set(range(given.pieces)) - set(reached):
                targets[p].zero_()
        if not reached:
            return result
        groups, group_names = self._grouped(paths)
        if groups:  # those that no task reaches keep their place
            reached = list(range(given.pieces))
        rows = {self._names.index(name): t for t, name in enumerate(names)}
        places = [rows.get(i) for i in range(len(self._names))]
        whole = given.stacked and places == list(range(given.tasks))
        grads = given if whole else given.at(reached, places)
        second = against if against is None or whole else against.at(range(against.pieces), places)
        ops.warn_if_reference(grads.device)
        out = grads.empty() if targets is None else [targets[p] for p in reached]
        step = Step(self._state(grads, reached, group_names), grads.present, self._checked_losses(told, grads), second)
        solution = self.method.surgery_(out, grads, step, groups)
        self._record(solution, grads.present, group_names)
        for p, tensor in zip(reached, out, strict=True):
            if targets is not None or given.shape(p) is not None:
                result[p] = tensor
        return result

    def _grouped(self, paths: Callable[[], Sequence[str]]) -> tuple[list[int], tuple[str, ...]]:
        """The group of each position and the groups' names; both empty for one surgery on all."""
        if self._group_by is None or self.method.spec.family == "coordinatewise":
            return [], ()
        groups, names = group_labels(paths(), self._group_by)
        return groups, tuple(names)

    def _record(self, solution: Solution, present: tuple[bool, ...], groups: tuple[str, ...]) -> None:
        tasks = tuple(self._names.known)
        step = Statistics(self._step, tasks, present, solution.gram, solution.weights, solution.status, groups, solution.combined)
        self._history.append(step)
        self._step += 1
        for hook in list(self._step_hooks.values()):
            assert solution.gram is not None  # or there would be no hook
            hook(step, solution.gram.sum(0) if groups else solution.gram)

    def register_step_hook(self, hook: StepHook) -> RemovableHandle:
        """Calls ``hook(statistics, gram)`` after every step of surgery, with K still on its device; GradNorm listens here.

        Raises:
            ValueError: the method computes no K.
        """
        if not self.method.finds_gram:
            name = self.method.spec.name
            raise ValueError(
                f"register_step_hook: {name!r} treats every coordinate by itself and computes no K to listen to. Ask for it: "
                f"GradientAggregator({name!r}, diagnostics=True), at the cost of a second read of the gradients."
            )
        handle = RemovableHandle(self._step_hooks)
        self._step_hooks[handle.id] = hook
        return handle

    # --- what happened ------------------------------------------------------------------------------------------------------

    @property
    def declared(self) -> bool:
        """Whether the tasks were given to the constructor."""
        return self._names.declared

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks known so far."""
        return tuple(self._names.known)

    @property
    def weights(self) -> Tensor | None:
        """w of the last step, 0 for absent tasks, on its device, without waiting for it. [T] float64

        None before the first step, and for a method that has no weights (family "coordinatewise").
        """
        return self._history[-1].device_weights if self._history else None

    def statistics(self) -> Statistics:
        """Norms, cosines, conflicts and weights of the last step, computed when read.

        Raises:
            RuntimeError: no step has been taken yet.
        """
        if not self._history:
            raise RuntimeError("statistics: no step of surgery has been taken yet.")
        return self._history[-1]

    @property
    def history(self) -> list[Statistics]:
        """The last steps, oldest first."""
        return list(self._history)

    # --- losses, for methods that ask for them ------------------------------------------------------------------------------

    def observe(self, losses: L) -> L:
        """Tells the losses of this step to a method that needs them, before the backward pass; returns what it was given.

        ``sum(surgery.observe([loss_a, loss_b])).backward()``. Each step's losses are forgotten after its surgery.

        Args:
            losses: scalars, as a dict by task name or a sequence in the order of the tasks, None for an absent task.

        Raises:
            TypeError, ValueError: an unknown name, a wrong number of losses, or a loss that is no scalar.
        """
        if isinstance(losses, Mapping):
            by_name: dict[str, Tensor | None] = dict(losses)
        elif isinstance(losses, str) or not isinstance(losses, Sequence):
            raise TypeError(f"losses: expected a dict by task or a sequence, found {type(losses).__name__}.")
        else:
            given: list[Tensor | None] = list(losses)
            names = self._names.present(None if self._names.known else len(given))
            if len(given) != len(names):
                raise ValueError(f"losses: expected {len(names)} ({', '.join(names)}), found {len(given)}.")
            by_name = dict(zip(names, given, strict=True))
        told = {name: scalar_loss(loss, f"losses[{name!r}]") for name, loss in by_name.items() if loss is not None}
        for name in told:
            self._names.index(name)
        self._losses = told
        return losses

    def _checked_losses(self, told: Mapping[str, Tensor | float], grads: TaskGradients) -> Tensor | None:
        """The losses told of this step, NaN for tasks without. [T] float64"""
        if not told:
            return None
        if "losses" in self.method.needs:
            missing = [name for name, here in zip(self._names.known, grads.present, strict=True) if here and name not in told]
            if missing:
                raise ValueError(f"losses: expected one of every task with a gradient, found none of {', '.join(missing)}.")
        return stacked([told.get(name, math.nan) for name in self._names.known], grads.device)

    # --- state --------------------------------------------------------------------------------------------------------------

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._history.clear()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, has the state but neither listeners nor a step that is under way."""
        return {**self.__dict__, "_step_hooks": OrderedDict(), "_detached": None, "_losses": {}}

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.method}, tasks={list(self._names.known)}"

    def forward(self, features: Any, tasks: Sequence[str] | int | None = None) -> tuple[Any, ...]:
        """``split``, so that the aggregator can stand in a model like any module."""
        return self.split(features, tasks)
