"""The registry of balancers: losses -> one scalar loss, each in a file of its own.

Registering a class is all it takes: ``gradsurgery.balancers()``, the trainers' choices and the tests iterate the registry. A
balancer's options are the keyword-only arguments of its ``__init__``, but for ``process_group``, which all take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from gradsurgery.names import expected

from .base import Balancer

PROPERTIES = frozenset(
    {
        "learned",  # has parameters that belong in an optimizer
        "reads_gradients",  # needs aggregator= or layer=
        "updates_after_step",  # learns from update(losses) after the optimizer's step
        "counts_epochs",  # has to be told with end_epoch()
        "random",
        "separable",  # a task's term, and what is learned, depend on its own loss alone: weighted() may be called task by task
        "positive_losses",  # is defined for positive losses only
        "permutation_equivariant",  # reordering the tasks reorders the weights
        "homogeneous",  # B(s L) = s B(L) for s > 0
        "scale_free",  # the weights at (c_1 L_1, ..., c_T L_T) times c_t, made to sum to 1, do not depend on c > 0
        "weights_sum_to_one",
        "weights_sum_to_tasks",
    }
)


@dataclass(frozen=True)
class BalancerSpec:
    """What the registry knows of a balancer.

    Attributes:
        name: as the papers write it, lower case.
        options: option names and their defaults, but for ``process_group``.
        properties: what a loop has to know of it, and what holds of its weights; the tests prove each.
        paper: where the balancer comes from.
        summary: the first line of its documentation, the formula.
    """

    name: str
    options: Mapping[str, Any]
    properties: frozenset[str]
    paper: str
    summary: str
    cls: type[Balancer] = field(repr=False)

    def build(self, tasks: Sequence[str] | int, *, process_group: Any = None, **options: Any) -> Balancer:
        """A balancer of these tasks with these options, and of these processes.

        Raises:
            TypeError: an option the balancer does not have.
            ValueError: a value the option does not take.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "no options"
            raise TypeError(f"balancer {self.name!r} has no option {', '.join(map(repr, unknown))}; it takes {known}.")
        if process_group is not None:
            options["process_group"] = process_group
        return self.cls(tasks, **options)


_SPECS: dict[str, BalancerSpec] = {}
_Class = TypeVar("_Class", bound=type[Balancer])


def register(name: str, *, paper: str, properties: Sequence[str] = ()) -> Callable[[_Class], _Class]:
    """Class decorator that adds a balancer to the registry.

    Raises:
        ValueError: the name is taken, or a property is unknown.
    """
    unknown = sorted(set(properties) - PROPERTIES)
    if unknown:
        raise ValueError(f"properties: expected some of {sorted(PROPERTIES)}, found {unknown}.")

    def add(cls: _Class) -> _Class:
        if name in _SPECS:
            raise ValueError(f"name: a balancer {name!r} is registered already, by {_SPECS[name].cls.__qualname__}.")
        arguments = inspect.signature(cls).parameters.values()
        keywords = [a for a in arguments if a.kind is inspect.Parameter.KEYWORD_ONLY and a.name != "process_group"]
        options = {a.name: a.default for a in keywords}
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        _SPECS[name] = BalancerSpec(name, MappingProxyType(options), frozenset(properties), paper, summary, cls)
        return cls

    return add


class _ByName(dict[str, BalancerSpec]):
    def __missing__(self, name: str) -> BalancerSpec:
        raise KeyError(expected("balancer", name, self) if isinstance(name, str) else name)


def balancers() -> dict[str, BalancerSpec]:
    """All registered balancers by name; one that is not there is a ``KeyError`` that says which are."""
    return _ByName(_SPECS)
