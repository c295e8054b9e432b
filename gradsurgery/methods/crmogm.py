"""CR-MOGM: any method's weights, smoothed over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gradsurgery.capture.gradients import TaskGradients

from .preference import beside, check_count, checked_numbers
from .registry import NO_STEP, Method, Solution, Step, build, check_gram, register

_PREFIX = "inner_"


@register(
    "crmogm",
    family="gram",
    paper="Zhou et al., On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond, NeurIPS 2022",
    properties=("permutation_equivariant", "one_task_identity"),
    degree=1.0,
)
@dataclass(frozen=True)
class CRMOGM(Method):
    """w ← α w + (1 − α) ŵ, where ŵ are the weights of another method, and w = ŵ at first.

    Each task's average begins with the first step in which it is present, and waits while it is absent. A step whose gradients are
    not finite changes nothing. Without state (``gradsurgery.weights``, ``gradsurgery.aggregate``) every call is a first one.

    Other options are the inner method's: ``GradientAggregator("crmogm", inner="pcgrad", alpha=0.95, reduction="mean")``. Where
    the names collide (an ``alpha`` of the inner method), give a built method: ``inner=gradsurgery.methods.build(name, alpha=2.0)``.

    Options:
        inner: the other method, by name or built; one that has weights and finds them from K.
        alpha: α in [0, 1].
        initial_weights: w before the first step, so that it is smoothed, too; None: begin with ŵ. [T]
    """

    inner: str | Method = "mgda"
    alpha: float = 0.9
    initial_weights: Sequence[float] | Tensor | None = None

    @classmethod
    def from_options(cls, **options: Any) -> Method:
        own = {field.name for field in fields(cls)}
        others = {name: options.pop(name) for name in set(options) - own}
        if others:
            options["inner"] = build(options.get("inner", cls.inner), **others)
        return cls(**options)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, (str, Method)):
            raise TypeError(f"inner: expected a method's name or a built method, found {self.inner!r}.")
        inner = self._inner
        if inner.spec.family not in ("gram", "scalarization") or isinstance(inner, CRMOGM):
            raise ValueError(
                f"inner: expected a method that finds weights from K, found {inner.spec.name!r} (family {inner.spec.family!r})."
            )
        if not isinstance(self.alpha, (int, float)) or not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], found {self.alpha!r}.")
        if self.initial_weights is not None:
            object.__setattr__(self, "initial_weights", checked_numbers(self.initial_weights, "initial_weights", -math.inf))

    @property
    def _inner(self) -> Method:
        return build(self.inner)

    def _initial(self, like: Tensor) -> Tensor:
        """``initial_weights`` beside a tensor [..., T]. [T]"""
        assert self.initial_weights is not None
        check_count(self.initial_weights, "initial_weights", like.shape[-1])
        return beside(like, self.initial_weights)  # type: ignore[arg-type]  # a tuple of numbers since __post_init__

    def initial_state(self) -> dict[str, Tensor]:
        """The inner method's."""
        return {_PREFIX + name: tensor for name, tensor in self._inner.initial_state().items()}

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        """The averages, which tasks have one, and the inner method's own."""
        inner = {_PREFIX + name: tensor for name, tensor in self._inner.task_state(grads, groups).items()}
        shape = (groups, grads.tasks)
        average = torch.zeros(shape, dtype=torch.float64, device=grads.device)
        if self.initial_weights is not None:
            average += self._initial(average)
        begun = torch.full(shape, self.initial_weights is not None, device=grads.device)
        return {"average": average, "begun": begun} | inner

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        inner_state = {name.removeprefix(_PREFIX): tensor for name, tensor in step.state.items() if name.startswith(_PREFIX)}
        found = self._inner.solve(gram, step._replace(state=inner_state))
        assert found.weights is not None
        return found._replace(weights=self._smoothed(found.weights, step))

    def _smoothed(self, w: Tensor, step: Step) -> Tensor:
        if "average" in step.state:
            average, begun = step.state["average"].reshape(w.shape), step.state["begun"].reshape(w.shape)
            result = torch.where(begun, self.alpha * average + (1 - self.alpha) * w, w)
            kept = w.isfinite().all()
            if step.present is not None and not all(step.present):
                kept = kept & torch.tensor(step.present, device=w.device)
            average.copy_(torch.where(kept, result, average))
            begun |= kept
            return result
        if self.initial_weights is not None:
            return self.alpha * self._initial(w) + (1 - self.alpha) * w
        return w
