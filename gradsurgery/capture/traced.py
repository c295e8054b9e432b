"""Form A inside a graph of torch.compile, which holds tensors, numbers and words, but neither objects nor closures.

The boundary is the operator ``boundary`` there, and surgery the operator ``boundary_backward``: it calls an aggregator, known by a
number, once each backward pass and in Python, as without a compiler.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from weakref import WeakMethod

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.ops.schema import LIBRARY

from .features import Features
from .gradients import TaskGradients
from .probe import is_probing
from .split import boundary, plain_sum

NamedSurgery: TypeAlias = Callable[[TaskGradients, Sequence[str], Callable[[], Sequence[str]]], list[Tensor | None]]
"""The gradients of tasks over P tensors, the tasks' names, and what gives the tensors' -> one gradient over P tensors."""

_enrolled: dict[int, WeakMethod[NamedSurgery]] = {}
_numbers = itertools.count()


def enroll(surgery: NamedSurgery) -> int:
    """A number for a method of an object, by which a graph can call it.

    No other of the process ever has it. It ends with the object, which it does not keep alive.
    """
    number = next(_numbers)
    _enrolled[number] = WeakMethod(surgery, lambda _: _enrolled.pop(number, None))
    return number


def split_in_graph(features: Features, number: int, names: Sequence[str], paths: Sequence[str]) -> tuple[Any, ...]:
    """``split`` for the compiler to trace.

    Args:
        features: what is split.
        number: of the surgery that is enrolled.
        names: of the tasks. [T]
        paths: of the tensors, if the surgery asks for them. [P]
    """
    return features.rebuild_each(ops.boundary(features.tensors, number, names, paths))


def _differentiable_views(tensors: Sequence[Tensor], number: int, names: Sequence[str], paths: Sequence[str]) -> list[Tensor]:
    """Runs when a graph is lowered; or at each of its calls, where the compiler does not lower it.

    AOTAutograd makes views that leave a graph anew from their base, which would lead their gradients around the boundary. Those of
    one ``unbind`` it keeps, if nothing else views the base; hence a copy as their base, which Inductor takes out again.
    """

    def surgery(grads: TaskGradients) -> list[Tensor | None]:
        results = iter(ops.boundary_backward(grads.entries, number, names, paths))
        reached = set(grads.reached())
        return [next(results) if p in reached else None for p in range(grads.pieces)]

    return list(boundary([tensor.clone() for tensor in tensors], len(names), surgery, unbound=True))


def _views(tensors: Sequence[Tensor], number: int, names: Sequence[str], paths: Sequence[str]) -> list[Tensor]:
    """Without autograd, as in ``torch.inference_mode``."""
    return [tensor.view_as(tensor) for _ in names for tensor in tensors]


def _surgery(grads: Sequence[Tensor | None], number: int, names: Sequence[str], paths: Sequence[str]) -> list[Tensor]:
    given = TaskGradients(list(grads), len(names))
    if is_probing():
        return [g for g in plain_sum(given) if g is not None]
    if torch._C._current_graph_task_id() >= 0 and torch._C._autograd._get_current_graph_task_keep_graph():
        raise RuntimeError(
            "split: retain_graph=True (or create_graph=True) lets several backward passes go through one forward pass, and in a "
            "compiled function the aggregator cannot tell which tasks are in which. Add the tasks' losses and call backward() "
            "once; or compile trunk and heads, and leave the aggregator between them uncompiled."
        )
    enrolled = _enrolled.get(number)
    surgery = None if enrolled is None else enrolled()
    if surgery is None:
        raise RuntimeError(
            "split: the GradientAggregator that a compiled function was traced with is gone. Keep it for as long as the function "
            "is used, and compile anew for another."
        )
    return [g for g in surgery(given, names, lambda: paths) if g is not None]


LIBRARY.impl("boundary", _differentiable_views, "Autograd")
LIBRARY.impl("boundary", _views, "CompositeExplicitAutograd")
LIBRARY.impl("boundary_backward", _surgery, "CompositeExplicitAutograd")
