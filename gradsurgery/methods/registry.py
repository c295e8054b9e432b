"""The registry of methods: K -> w, each in a small file of its own.

A method is a frozen dataclass whose fields are its options. Registering it is all it takes: ``gradsurgery.methods()``,
``GradientAggregator``, ``gradsurgery.weights`` and the tests' parametrisation iterate the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients

State = Mapping[str, Tensor]
"""A method's memory between steps: named tensors that the caller keeps, and the method updates in place."""

NO_STATE: State = MappingProxyType({})


class Method:
    """Base of every method: turns a Gram matrix into one weight a task."""

    spec: ClassVar[MethodSpec]

    def initial_state(self) -> dict[str, Tensor]:
        """Tensors to keep between steps; empty for a method without memory."""
        return {}

    def weights(self, gram: Tensor, state: State = NO_STATE, present: Sequence[bool] | None = None) -> Tensor:
        """Weights of one step.

        Args:
            gram: K [T, T], float64.
            state: what ``initial_state`` returned, updated in place; empty for a call without memory.
            present: which tasks have a gradient in this step; None: all.

        Returns:
            w [T], float64, on K's device.
        """
        raise NotImplementedError

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        state: State = NO_STATE,
        present: Sequence[bool] | None = None,
        accumulate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """gram -> weights -> combine into ``out``; returns (K, w). Methods with a fused operator override this."""
        gram = ops.gram(grads.entries, grads.tasks, grads.stacked)
        w = self.weights(gram, state, present)
        ops.combine_(out, grads.entries, w, grads.stacked, accumulate)
        return gram, w

    def small_matrix_(self, out: Any, grads: Tensor) -> bool:
        """``surgery_`` of a small matrix [T, N] into ``out`` [N] by a shorter way, if the method has one and it applies.

        The arguments are unchecked. False: nothing was done.
        """
        return False


@dataclass(frozen=True)
class MethodSpec:
    """What the registry knows of a method.

    Attributes:
        name: as the papers write it, lower case.
        family: "gram" (needs K only) or "scalarization" (constant weights).
        options: option names and their defaults.
        properties: declared mathematical properties; the tests prove each over random gradients.
        paper: where the method comes from.
        summary: the first line of its documentation, the formula.
    """

    name: str
    family: str
    options: Mapping[str, Any]
    properties: frozenset[str]
    paper: str
    summary: str
    cls: type[Method] = field(repr=False)

    def build(self, **options: Any) -> Method:
        """A method with these options.

        Raises:
            TypeError: an option the method does not have.
            ValueError: a value the option does not take.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "no options"
            raise TypeError(f"method {self.name!r} has no option {', '.join(map(repr, unknown))}; it takes {known}.")
        return self.cls(**options)


_SPECS: dict[str, MethodSpec] = {}
_DEFAULTS: dict[str, Method] = {}  # each method with its default options; immutable, hence shared
_Class = TypeVar("_Class", bound=type[Method])

PROPERTIES = frozenset(
    {
        "permutation_equivariant",  # reordering the tasks reorders the weights (PCGrad: only for T = 2, hence not declared)
        "homogeneous",  # A(sG) = s A(G) for s > 0
        "linear_under_scaling",  # A(diag(a c1 + b c2) G) = a A(diag(c1) G) + b A(diag(c2) G) for positive c
        "sum_without_conflict",  # equals the sum when no two tasks conflict
        "weights_at_least_one",
        "zero_row_neutral",  # appending a zero gradient changes nothing
    }
)


def register(name: str, *, family: str, paper: str, properties: Sequence[str] = ()) -> Callable[[_Class], _Class]:
    """Class decorator that adds a method to the registry.

    Raises:
        ValueError: the name is taken, or a property is unknown.
    """
    unknown = sorted(set(properties) - PROPERTIES)
    if unknown:
        raise ValueError(f"properties: expected some of {sorted(PROPERTIES)}, found {unknown}.")

    def add(cls: _Class) -> _Class:
        if name in _SPECS:
            raise ValueError(f"name: a method {name!r} is registered already, by {_SPECS[name].cls.__qualname__}.")
        options = {}
        for option in fields(cls):  # type: ignore[arg-type]  # every method is a dataclass
            options[option.name] = option.default_factory() if option.default_factory is not MISSING else option.default
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        cls.spec = MethodSpec(name, family, MappingProxyType(options), frozenset(properties), paper, summary, cls)
        _SPECS[name] = cls.spec
        return cls

    return add


def methods() -> dict[str, MethodSpec]:
    """All registered methods by name."""
    return dict(_SPECS)


def build(method: str | Method, **options: Any) -> Method:
    """The method of a name with options, or the method itself.

    Raises:
        ValueError: an unknown name.
        TypeError: an option the method does not have, or options beside a method that is built already.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(f"options {sorted(options)} cannot change the given {type(method).__name__}; build it with them.")
        return method
    if not options:
        default = _DEFAULTS.get(method)
        if default is None:
            default = _DEFAULTS[method] = _spec(method).build()
        return default
    try:
        return _cached(method, tuple(options), *options.values())
    except TypeError:  # an unhashable value; building says whether it is wrong
        return _spec(method).build(**options)


def _spec(name: str) -> MethodSpec:
    spec = _SPECS.get(name)
    if spec is None:
        raise ValueError(f"method: expected one of {', '.join(sorted(_SPECS))}, found {name!r}.")
    return spec


@lru_cache(maxsize=256, typed=True)  # typed: 1.0 is not the seed 1
def _cached(name: str, names: tuple[str, ...], *values: Any) -> Method:
    if any(isinstance(value, Tensor) for value in values):
        raise TypeError("not cached: a tensor would be kept alive")
    return _spec(name).build(**dict(zip(names, values, strict=True)))


def check_gram(gram: Tensor) -> None:
    """Raises unless ``gram`` is a square float64 matrix."""
    if not isinstance(gram, Tensor):
        raise TypeError(f"gram: expected a [T, T] float64 tensor, found {type(gram).__name__}.")
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram: expected shape [T, T] with T >= 1, found {list(gram.shape)}.")
    if gram.dtype != torch.float64:
        raise TypeError(f"gram: expected float64 (surgery is decided in double precision), found {gram.dtype}.")
