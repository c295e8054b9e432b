"""One step of surgery, with the method's memory, and what is known of the steps before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.batch import safe
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.grouping import SAMPLE, GroupBy, check_samples, group_labels, sample_names
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.distributed import Parts, Ranks, SyncMode, Whole, several_processes
from gradsurgery.distributed.copies import gram_here
from gradsurgery.methods import Method, Solution, Step
from gradsurgery.methods.by_sample import check_by_sample
from gradsurgery.methods.registry import WEIGHTED, required_losses
from gradsurgery.recorded import RecordedSteps
from gradsurgery.reuse import Served


class Surgery(RecordedSteps):
    """gram -> weights -> combine over the tasks of one step; ``GradientAggregator`` brings the gradients.

    Args:
        method: that turns K into weights.
        names: of the tasks.
        group_by: a surgery of its own for each group of positions, or for each sample.
        every: for how many steps weights are used.
        history: how many past steps are kept; None: 1024, or with samples the last one.
        ranks: the processes that make each step together; None: this one alone.
        sync: whether they decide together ("global"), or each by itself.

    Raises:
        ValueError, TypeError: what is no grouping, or no such number; ``every`` with a method that has no weights to use again, or
            with samples; samples with a method that cannot tell them apart.
    """

    def __init__(
        self,
        method: Method,
        names: TaskNames,
        group_by: GroupBy | None,
        every: int,
        history: int | None,
        ranks: Ranks | None = None,
        sync: SyncMode = "global",
    ) -> None:
        by_sample = group_by == SAMPLE and method.spec.family != "coordinatewise"
        super().__init__(method, names, every, (1 if by_sample else 1024) if history is None else history)
        self._group_by, self._by_sample = group_by, by_sample
        if group_by == SAMPLE:
            check_by_sample(method, "group_by")
            if every > 1:
                raise ValueError(f"every: expected 1 with group_by='sample', as the next batch has other samples, found {every}.")
        elif group_by is not None:
            group_labels((), group_by)  # refuses what is no grouping
        if every > 1:
            self._check_weighted("every", f"every={every}")
        self._ranks = ranks
        self._together = ranks if sync == "global" else None
        self._joining = False  # ranks may have left their loops, and shadow steps of the representation alone
        self._takes_part = False  # whether a loss is propagated that should reach no task's features

    # --- one step -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _surgery(
        self,
        given: TaskGradients,
        names: Sequence[str],
        paths: Callable[[], Sequence[str]],
        targets: Sequence[Tensor] | None = None,
        against: TaskGradients | None = None,
        accumulate: bool = False,
        scale: Tensor | None = None,
        kind: str = "features",
        here: Sequence[bool] | None = None,
    ) -> list[Tensor | None]:
        """gram -> weights -> combine over the tasks of one step. [P]

        Args:
            given: the gradients of the tasks ``names``.
            names: of the tasks of this step.
            paths: gives the names of the positions. [P]
            targets: where to write; without them the results are new, and None where no task has a gradient. [P]
            against: of a second batch, at the positions that ``given`` reaches.
            accumulate: add to what is in ``targets``.
            scale: by which the gradients were multiplied, float64 on their device: the result is, too, but not what decides. []
            kind: of what they are the gradients; weights of one kind do not serve another.
            here: which of them this rank has, where the gradients were reduced over the ranks already. [T]
        """
        self._check_expected()
        told, self._losses = self._losses, {}  # whatever becomes of this step, they are not the next one's
        result: list[Tensor | None] = [None] * given.pieces if targets is None else list(targets)
        reached = given.reached()
        if targets is not None and not accumulate:
            for p in set(range(given.pieces)) - set(reached):
                targets[p].zero_()
        if not reached:
            return result
        groups: list[int] = []
        if self._by_sample:
            group_names = sample_names(check_samples([given.shape(p) for p in range(given.pieces)], paths))
        else:
            groups, group_names = self._grouped(paths)
        if groups:  # those that no task reaches keep their place
            reached = list(range(given.pieces))
        places = self._places(names)
        whole = given.stacked and places == list(range(given.tasks))
        grads = given if whole else given.at(reached, places)
        second = against if against is None or whole else against.at(range(against.pieces), places)
        ops.warn_if_reference(grads.device)
        out = grads.empty() if targets is None else [targets[p] for p in reached]
        present = grads.present if here is None else tuple(t is not None and here[t] for t in places)
        serve = (kind, self._served(present), group_names)
        kept = self._reuse.take(serve, grads.device)
        if kept is None:
            losses = self._checked_losses(told, present, grads.device)
            step = Step(self._state(grads, reached, () if self._by_sample else group_names), present, losses, second)
            parts: Parts = "samples" if here is None else "coordinates"
            solution, present = self._solved(out, grads, step, groups, accumulate, scale, parts)
        else:
            ops.combine_(out, grads.entries, kept, grads.stacked, accumulate, groups or None)
            solution = Solution(None, kept)
            present = serve[1]
        if kept is None and here is not None and solution.gram is None:  # one task alone, on any rank
            self._plain_step(self._names.known[present.index(True)], grads.device, told)
        else:
            self._record(solution, present, serve, told, renewed=kept is None)
        for p, tensor in zip(reached, out, strict=True):
            if targets is not None or given.shape(p) is not None:
                result[p] = tensor
        return result

    def _check_expected(self) -> None:
        """Raises where gradients arrive in a step that was said to have none; warns, once, where others of a job's do not count."""
        if self._ranks is None and not self._history and several_processes():
            warnings.warn(
                f"gradsurgery: this is one of {torch.distributed.get_world_size()} processes, and decides by its own gradients. "
                "For the surgery of one process with the whole batch give the aggregator process_group=torch.distributed.group."
                "WORLD, after init_process_group(); sync='local' beside it says that this is meant.",
                stacklevel=3,
            )
        if self._takes_part:
            raise RuntimeError(
                "take_part: expected a loss of what comes before split(), found that its backward pass reaches a task's features, "
                "so that this step has a task. Call backward() on it without take_part()."
            )

    def _solved(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step,
        groups: Sequence[int],
        accumulate: bool,
        scale: Tensor | None,
        parts: Parts,
    ) -> tuple[Solution, tuple[bool, ...]]:
        """The result of a step that finds weights, in ``out``; and which tasks have a gradient, on several ranks on any of them."""
        assert step.present is not None
        if self._by_sample:
            return self.method.samples_surgery_(out, grads, step, accumulate), step.present
        if self._together is None:
            return scaled_surgery_(self.method, out, grads, step, groups, accumulate, scale), step.present
        solution, present = self._solve_together(gram_here(grads, groups), step, parts, scale)
        assert solution.weights is not None
        ops.combine_(out, grads.entries, solution.weights, grads.stacked, accumulate, list(groups) or None)
        return solution, present

    @torch.no_grad()
    def _decide(self, gram: Tensor, names: Sequence[str], present: Sequence[bool]) -> Tensor:
        """The weights of a step of which only K is known, in the order of ``names``. [T]

        Args:
            gram: K of the tasks ``names``. [T, T]
            names: of the tasks of this step.
            present: which of them have a gradient. [T]
        """
        told, self._losses = self._losses, {}
        places = self._places(names)
        here = tuple(t is not None and present[t] for t in places)
        K = gram
        if places != list(range(len(names))):
            zero = gram.new_zeros(())
            K = torch.stack([zero if None in (t, u) else gram[t, u] for t in places for u in places])
            K = K.reshape(len(places), len(places))
        like = TaskGradients([K], len(places), stacked=True)
        step = Step(self._state(like, [], ()), here, self._checked_losses(told, here, K.device))
        solution = self.method.solve(K, step)
        self._record(solution, here, ("parameters", here, ()), told, renewed=True)
        return self._of(solution, names)

    def _solve_together(
        self, local: Tensor, step: Step, parts: Parts, scale: Tensor | None = None
    ) -> tuple[Solution, tuple[bool, ...]]:
        """The weights of K over all ranks, and which tasks some rank has. [T]

        Args:
            local: this rank's part of K. [T, T] or [G, T, T]
            step: what else there is to know; of ``present`` and ``losses``, what is on this rank.
            parts: as of ``Ranks.gram``.
            scale: by which the gradients were multiplied, float64; None: 1. []
        """
        assert self._together is not None
        assert step.present is not None
        whole = self._together.gram(local, step.present, parts, self._step, self._sent_losses(step, local))
        if parts == "coordinates" and sum(whole.present) == 1:
            alone = whole.gram.new_tensor(whole.present).expand(whole.gram.shape[:-1]).contiguous()
            return Solution(None, alone), whole.present
        return self._decided(whole, step, scale)

    def _decided(self, whole: Whole, step: Step, scale: Tensor | None) -> tuple[Solution, tuple[bool, ...]]:
        """The weights of what the ranks know together, and which tasks some rank has; the arguments as of ``_solve_together``."""
        assert self._together is not None
        K = whole.gram if scale is None else whole.gram / safe(scale) ** 2
        solution = self.method.solve(K, step._replace(present=whole.present, losses=whole.losses))
        assert solution.weights is not None
        if self._together.checks:
            self._together.check_same(solution.weights, self._step)
        return solution, whole.present

    def _sent_losses(self, step: Step, like: Tensor) -> Tensor | None:
        """This rank's losses, if the method asks for them; anything of tasks that it lacks. [T]"""
        if "losses" not in self.method.needs:
            return None
        return required_losses(self.method, step) if step.present and any(step.present) else like.new_zeros(like.shape[-1])

    @torch.no_grad()
    def _absent(self, device: torch.device) -> Callable[[], None]:
        """A step of the other ranks: tells them that this one lacks all tasks. What is returned waits for them, and records it."""
        self._losses = {}
        T, groups = len(self._names), tuple[str, ...]()
        if self._group_by is not None:
            if self._history.last is None:
                raise RuntimeError("take_part: expected an earlier step of this rank, which tells the groups, found none.")
            groups = self._history.last.groups
        here, serve = (False,) * T, ("features", (True,) * T, groups)
        kept = self._reuse.take(serve, device)
        if kept is not None:
            self._record(Solution(None, kept), serve[1], serve, {}, renewed=False)
            return lambda: None
        assert self._together is not None
        zeros = torch.zeros(*((len(groups),) if groups else ()), T, T, dtype=torch.float64, device=device)
        like = TaskGradients([zeros[0] if groups else zeros], T, stacked=True)
        step = Step(self._state(like, [], groups), here)
        answer = self._together.ask(zeros, here, "samples", self._step, self._sent_losses(step, zeros))

        @torch.no_grad()
        def finish() -> None:
            solution, present = self._decided(answer(), step, None)
            self._record(solution, present, serve, {}, renewed=True)

        return finish

    def _served(self, present: tuple[bool, ...]) -> tuple[bool, ...]:
        """For which tasks weights serve: on several ranks for all, as none knows at once whom the others have. [T]"""
        return present if self._together is None else (True,) * len(present)

    @torch.no_grad()
    def _kept(self, names: Sequence[str], present: Sequence[bool], device: torch.device) -> Tensor | None:
        """The weights of an earlier step for one more step, in the order of ``names``; None where they have to be renewed. [T]"""
        here = tuple(t is not None and present[t] for t in self._places(names))
        serve = ("parameters", self._served(here), ())
        kept = self._reuse.take(serve, device)
        if kept is None:
            return None
        told, self._losses = self._losses, {}
        solution = Solution(None, kept)
        self._record(solution, serve[1], serve, told, renewed=False)
        return self._of(solution, names)

    @property
    def several(self) -> bool:
        """Whether a process group was given to the constructor, whose ranks make each step together."""
        return self._ranks is not None

    def _of(self, solution: Solution, names: Sequence[str]) -> Tensor:
        assert solution.weights is not None
        if list(names) == self._names.known:
            return solution.weights
        return torch.stack([solution.weights[self._names.index(name)] for name in names])

    def _places(self, names: Sequence[str]) -> list[int | None]:
        """Where each known task stands among the tasks of a step. [T]"""
        rows = {self._names.index(name): t for t, name in enumerate(names)}
        return [rows.get(i) for i in range(len(self._names))]

    def _check_weighted(self, name: str, asked: str) -> None:
        """Raises where a method's result is no sum of gradients with weights that K decides."""
        spec = self.method.spec
        if spec.family not in WEIGHTED:
            raise ValueError(
                f"{name}: expected a method whose weights K alone decides (families {', '.join(WEIGHTED)}) for {asked}, found "
                f"{spec.name!r} of family {spec.family!r}."
            )

    def _grouped(self, paths: Callable[[], Sequence[str]]) -> tuple[list[int], tuple[str, ...]]:
        """The group of each position and the groups' names; both empty for one surgery on all."""
        if self._group_by in (None, SAMPLE) or self.method.spec.family == "coordinatewise":
            return [], ()
        assert self._group_by is not None
        groups, names = group_labels(paths(), self._group_by)
        return groups, tuple(names)

    def _record(
        self,
        solution: Solution,
        present: tuple[bool, ...],
        serve: Served,
        told: Mapping[str, Tensor | float],
        *,
        renewed: bool,
    ) -> None:
        if renewed and solution.weights is not None:
            self._reuse.renew(solution.weights, serve)
        self._add(solution, present, serve[2], told)


def scaled_surgery_(
    method: Method,
    out: Sequence[Tensor],
    grads: TaskGradients,
    step: Step,
    groups: Sequence[int],
    accumulate: bool,
    scale: Tensor | None,
) -> Solution:
    """s A(G / s) for gradients G that were multiplied by s: a loss scale decides nothing, whatever the method's degree.

    The arguments are those of ``Method.surgery_``, and s [], float64 on the gradients' device; None: 1.
    """
    if scale is None:
        return method.surgery_(out, grads, step, groups, accumulate)
    of_piece = list(groups) or None
    if method.spec.family in WEIGHTED:
        K = ops.gram(grads.entries, grads.tasks, grads.stacked, of_piece) / safe(scale) ** 2
        solution = method.solve(K, step)
        assert solution.weights is not None
        ops.combine_(out, grads.entries, solution.weights, grads.stacked, accumulate, of_piece)
        return solution
    # The others read the gradients themselves.
    inverse = safe(scale).reciprocal()
    rows = [None if g is None else g * inverse.to(g) for g in grads.entries]
    unscaled = TaskGradients(rows, grads.tasks, grads.stacked, grads.single)
    fresh = unscaled.empty()
    solution = method.surgery_(fresh, unscaled, step, groups)
    for target, tensor in zip(out, fresh, strict=True):
        scaled = tensor * scale.to(tensor)
        if accumulate:
            target.add_(scaled)
        else:
            target.copy_(scaled)
    return solution
