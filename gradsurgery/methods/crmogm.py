"""CR-MOGM: any method's weights, smoothed over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_number

from .preference import checked_numbers, given, presence
from .registry import NO_STEP, Method, Solution, Step, build, check_gram, register

_PREFIX = "inner_"


def _built(inner: str | Method, **options: Any) -> Method:
    """The inner method; what is wrong with it is said of ``inner``.

    Raises:
        TypeError, ValueError: as of ``build``.
    """
    try:
        return build(inner, **options)
    except TypeError as error:
        raise TypeError(f"inner: {str(error).removeprefix('method: ')}") from error
    except ValueError as error:
        raise ValueError(f"inner: {str(error).removeprefix('method: ')}") from error


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
    the names collide (an ``alpha`` of the inner method), give a built method:
    ``inner=gradsurgery.methods()["fairgrad"].build(alpha=2.0)``.

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
        others = {name: options.pop(name) for name in set(options) - set(cls.spec.options)}
        if others:
            options["inner"] = _built(options.get("inner", cls.inner), **others)
        return cls(**options)

    def __post_init__(self) -> None:
        inner = _built(self.inner)
        if inner.spec.family not in ("gram", "scalarization") or isinstance(inner, CRMOGM):
            raise ValueError(
                f"inner: expected a method that finds weights from K, found {inner.spec.name!r} (family {inner.spec.family!r})."
            )
        check_number("alpha", self.alpha, at_least=0, at_most=1)
        if self.initial_weights is not None:
            object.__setattr__(self, "initial_weights", checked_numbers("initial_weights", self.initial_weights))

    @property
    def _inner(self) -> Method:
        return build(self.inner)

    @property
    def needs(self) -> frozenset[str]:
        """What the inner method needs."""
        return self._inner.needs

    def initial_state(self) -> dict[str, Tensor]:
        """The inner method's."""
        return {_PREFIX + name: tensor for name, tensor in self._inner.initial_state().items()}

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        """The averages, which tasks have one, and the inner method's own."""
        inner = {_PREFIX + name: tensor for name, tensor in self._inner.task_state(grads, groups).items()}
        shape = (groups, grads.tasks)
        average = torch.zeros(shape, dtype=torch.float64, device=grads.device)
        initial = given("initial_weights", self.initial_weights, average)
        if initial is not None:
            average += initial
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
            present = presence(step, w)
            if present is not None:
                kept = kept & (present > 0)
            average.copy_(torch.where(kept, result, average))
            begun |= kept
            return result
        initial = given("initial_weights", self.initial_weights, w)
        return w if initial is None else self.alpha * initial + (1 - self.alpha) * w
