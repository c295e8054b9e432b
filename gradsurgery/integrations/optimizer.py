"""An optimizer with ``pc_backward``: surgery on the gradients of the parameters that it steps, and of no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.aggregator import GradientAggregator
from gradsurgery.methods import Method

Objective = Tensor | Sequence[Tensor] | None


class _OfWrapped:
    """An attribute of the wrapped optimizer: read, written and deleted there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: SurgeryOptimizer | None, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance.optimizer, self.name)

    def __set__(self, instance: SurgeryOptimizer, value: Any) -> None:
        setattr(instance.optimizer, self.name, value)

    def __delete__(self, instance: SurgeryOptimizer) -> None:
        delattr(instance.optimizer, self.name)


class SurgeryOptimizer(Optimizer):
    """A torch optimizer, and surgery on the gradients of its parameters: ``pc_backward`` in the place of ``backward``.

    ::

        optimizer = SurgeryOptimizer(torch.optim.Adam(net.parameters()), "cagrad", c=0.4)
        optimizer.pc_backward([loss_a, loss_b])
        optimizer.step()

    It is a ``torch.optim.Optimizer``, which schedulers and ``GradScaler`` take; parameter groups, state, hooks and the step are
    those of the optimizer it wraps. Only that optimizer's parameters get gradients: of an actor's loss that flows through a critic,
    the critic of another optimizer sees nothing.

    Args:
        optimizer: what steps. Not LBFGS, which evaluates the objectives as often as it likes within a step.
        method: a name of ``gradsurgery.methods()``, or a built method.
        tasks: the objectives' names, or their number; without it they are numbered, or named as they first appear.
        options: the method's, and those of ``GradientAggregator``.

    Attributes:
        optimizer: the wrapped optimizer.
        surgery: the ``GradientAggregator``, with ``weights``, ``statistics()`` and ``collect``.

    Raises:
        TypeError: ``optimizer`` is none, or is LBFGS.
        TypeError, ValueError: as for ``GradientAggregator``.
    """

    optimizer: Optimizer
    surgery: GradientAggregator

    defaults: Any = _OfWrapped()
    state: Any = _OfWrapped()
    param_groups: Any = _OfWrapped()
    grad_scale: Any = _OfWrapped()  # a GradScaler leaves these two with a fused optimizer for the time of a step
    found_inf: Any = _OfWrapped()

    def __init__(
        self,
        optimizer: Optimizer,
        method: str | Method = "pcgrad",
        *,
        tasks: Sequence[str] | int | None = None,
        **options: Any,
    ) -> None:
        # Optimizer.__init__ would make groups and hooks of its own beside those of the wrapped optimizer.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "optimizer: expected one that steps on the gradients it finds, found LBFGS, whose step(closure) evaluates one "
                "objective several times along a line. Use a first-order optimizer with surgery."
            )
        self.optimizer = optimizer
        self.surgery = GradientAggregator(method, tasks=tasks, **options)

    def pc_backward(
        self,
        objectives: Mapping[str, Objective] | Sequence[Objective] | None = None,
        *,
        retain_graph: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: bool = False,
        **how: Any,
    ) -> None:
        """Gives the optimizer's parameters the gradient that the method makes of the objectives' gradients.

        Parameters that two or more objectives reach are shared and get the surgery's result; those of one objective get its
        gradient unchanged; those of none have none. After ``zero_grad()`` the two settings of ``accumulate`` are the same.

        Args:
            objectives: a scalar an objective, in the order of the tasks or by name; None for one that is absent, several for one
                that has several batches. Without objectives: surgery on what ``surgery.collect`` holds.
            retain_graph: keep the graph for another backward pass.
            scaler: scales the objectives, which are given unscaled; the method decides on unscaled gradients.
            accumulate: add to ``.grad``; else what the optimizer's parameters had before is gone.
            how: ``gram_on``, ``memory`` and ``passes`` of ``GradientAggregator.backward``.

        Raises:
            TypeError, ValueError, RuntimeError: as for ``GradientAggregator.backward``; every ``.grad`` is as before.
        """
        own = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        before = [p.grad for p in own]
        if not accumulate:  # that of a head without objective in this step, too, or it would be stepped on once more
            _set_gradients(own, [None] * len(own))
        try:
            self.surgery.backward(objectives, inputs=own, retain_graph=retain_graph, scaler=scaler, **how)
        except BaseException:
            _set_gradients(own, before)
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """The wrapped optimizer's step, with its hooks."""
        return self.optimizer.step(closure)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    # --- state --------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state_dict()``, which loads into an optimizer of its kind, and "surgery", the aggregator's."""
        return {**self.optimizer.state_dict(), "surgery": self.surgery.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state of its own, or of the wrapped optimizer alone, which leaves the surgery as it is.

        Raises:
            ValueError, RuntimeError: it does not fit; nothing was taken.
        """
        before = self.optimizer.state_dict()
        self.optimizer.load_state_dict({name: value for name, value in state_dict.items() if name != "surgery"})
        if "surgery" in state_dict:
            try:
                self.surgery.load_state_dict(state_dict["surgery"])
            except BaseException:
                self.optimizer.load_state_dict(before)
                raise

    def __getstate__(self) -> dict[str, Any]:
        """Both parts; not the ``step`` that a scheduler has wrapped to see whether it was called."""
        return {"optimizer": self.optimizer, "surgery": self.surgery}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        """What this class does not know, such as the hooks and ``_step_supports_amp_scaling``, is the wrapped optimizer's."""
        if "optimizer" not in self.__dict__:  # a copy that is being made
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r}, surgery={self.surgery})"


class PCGrad(SurgeryOptimizer):
    """Surgery by PCGrad in the form of WeiChengTseng/Pytorch-PCGrad, whose loops run after ``from gradsurgery import PCGrad``.

    As there, ``pc_backward`` replaces ``.grad``, and shared parameters get the mean over the objectives. As in the paper (Yu et
    al., NeurIPS 2020, arXiv:2001.06782), and unlike there:

    - Inner products and norms are over the shared parameters, and heads get their own gradients. There they are over all
      parameters, and a projection on another objective's gradient changes that one's head, too.
    - Shared is what two or more objectives reach; there, what all of them reach.
    - A gradient is not projected on itself (``include_self=True`` does it).
    - Parameters that no objective reaches keep no gradient; there they get zeros, on which a weight decay still acts.
    - ``reduction="sum"`` is the sum; there it is the mean.
    - The graph is freed, as by ``backward()``; ``pc_backward(objectives, retain_graph=True)`` keeps it for a second pass.

    Args:
        optimizer: as for ``SurgeryOptimizer``.
        reduction: "mean" over the objectives present, or "sum", as in the paper.
        tasks: as for ``SurgeryOptimizer``.
        options: the other options of "pcgrad", and those of ``GradientAggregator``.

    Raises:
        TypeError, ValueError: as for ``SurgeryOptimizer``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        reduction: Literal["mean", "sum"] = "mean",
        *,
        tasks: Sequence[str] | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, "pcgrad", tasks=tasks, reduction=reduction, **options)


def _set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, grad in zip(parameters, gradients, strict=True):
        p.grad = grad
