"""The registry of methods: K -> w, each in a small file of its own.

A method is a frozen dataclass whose fields are its options. Registering it is all it takes: ``gradsurgery.methods()``,
``GradientAggregator``, ``gradsurgery.weights`` and the tests' parametrisation iterate the registry.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.names import expected

State = Mapping[str, Tensor]
"""A method's memory between steps: named tensors that the caller keeps, and the method updates in place."""

NO_STATE: State = {}  # a plain dict, which the compiler can trace; nobody writes to it


class Step(NamedTuple):
    """What a method may know of a step besides the gradients.

    Attributes:
        state: what ``initial_state`` and ``task_state`` returned, updated in place; empty for a call without memory.
        present: which tasks have a gradient in this step; None: all. [T]
        losses: the tasks' losses, float64 on the gradients' device, where the caller told them; NaN for absent tasks. [T]
        against: the gradients of a second batch, for methods that multiply two batches' gradients.
    """

    state: State = NO_STATE
    present: tuple[bool, ...] | None = None
    losses: Tensor | None = None
    against: TaskGradients | None = None


NO_STEP = Step()


class Solution(NamedTuple):
    """What a step of surgery came to.

    Attributes:
        gram: K [T, T] of the gradients as they arrived, or [G, T, T] with groups; None where the method did without.
        weights: w [T] or [G, T]; None where the result is no weighted sum of the gradients.
        status: (converged, stationary, rank, iterations) [4] or [G, 4], from a solver that says; see ``Statistics.status``.
        combined: the Gram matrix of what the weights combine, of K's shape, where that is not the gradients; else None.
    """

    gram: Tensor | None
    weights: Tensor | None
    status: Tensor | None = None
    combined: Tensor | None = None


class Method:
    """Base of every method: turns a Gram matrix into one weight a task.

    A method overrides ``weights``. One with memory also overrides ``initial_state`` or ``task_state``; one whose weights a compiled
    solver finds is a ``SolverMethod``.
    """

    spec: ClassVar[MethodSpec]

    @classmethod
    def from_options(cls, **options: Any) -> Method:
        """Builds the method; one that wraps another hands on the options it does not know.

        Raises:
            TypeError: an option the method does not have.
            ValueError: a value the option does not take.
        """
        unknown = sorted(set(options) - set(cls.spec.options))
        if unknown:
            known = ", ".join(cls.spec.options) or "no options"
            raise TypeError(f"method {cls.spec.name!r} has no option {', '.join(map(repr, unknown))}; it takes {known}.")
        return cls(**options)

    @property
    def needs(self) -> frozenset[str]:
        """What a step must tell besides the gradients, with these options; see ``MethodSpec.needs``."""
        return self.spec.needs

    def initial_state(self) -> dict[str, Tensor]:
        """Tensors to keep between steps that do not depend on the gradients, such as the counter of random draws."""
        return {}

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        """Tensors to keep between steps, as they are before the first, on the gradients' device.

        Dimensions that count tasks grow when a task first appears in a later step; what was there stays in the leading corner.
        """
        return {}

    @property
    def finds_gram(self) -> bool:
        """Whether ``surgery_`` computes K."""
        return True

    def check_fits(self, state: State, grads: TaskGradients) -> None:
        """Raises where the memory of earlier steps is of gradients of another shape, for methods whose memory has their shape."""

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        """Weights of one step.

        Args:
            gram: K [T, T], float64.
            step: what else there is to know.

        Returns:
            w [T], float64, on K's device.
        """
        raise NotImplementedError(f"method {self.spec.name!r}: define weights(self, gram, step), K [T, T] -> w [T].")

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        """``weights`` for K [T, T] or, group by group, [G, T, T], with what the solver says of them."""
        check_gram(gram)
        if gram.dim() == 2:
            return Solution(gram, self._checked(self.weights(gram, step), gram))
        return Solution(gram, torch.stack([self._checked(self.weights(K, step), K) for K in gram]))

    def _checked(self, w: object, gram: Tensor) -> Tensor:
        """What ``weights`` returned, if it is what it should be."""
        T, device = gram.shape[-1], gram.device
        if isinstance(w, Tensor) and w.shape == (T,) and w.dtype == torch.float64 and w.device == device:
            return w.contiguous()
        found = f"{w.dtype} {list(w.shape)} on {w.device}" if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"method {self.spec.name!r}: weights() must return torch.float64 [{T}] on {device}, found {found}.")

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        """gram -> weights -> combine into ``out``. Methods with a fused operator override this.

        Args:
            out: P tensors of the shape of one task's gradient.
            grads: the tasks' gradients over P tensors.
            step: what else there is to know.
            groups: the group of each tensor, from 0; empty: one group of all. [P]
            accumulate: add to what is in ``out``.
        """
        of_piece = list(groups) or None
        solution = self.solve(ops.gram(grads.entries, grads.tasks, grads.stacked, of_piece), step)
        assert solution.weights is not None
        ops.combine_(out, grads.entries, solution.weights, grads.stacked, accumulate, of_piece)
        return solution

    def samples_surgery_(
        self, out: Sequence[Tensor], grads: TaskGradients, step: Step = NO_STEP, accumulate: bool = False
    ) -> Solution:
        """``surgery_`` of its own for every sample of gradients [B, ...]: K [B, T, T], w [B, T]. See ``by_sample.py``.

        Args:
            out, grads, step, accumulate: as of ``surgery_``; every tensor's first dimension is the batch.
        """
        K = ops.gram_samples(grads.entries, grads.tasks, grads.stacked)
        solution = self.solve(K, step) if len(K) > 0 else Solution(K, K.new_empty(K.shape[:-1]))
        assert solution.weights is not None
        ops.combine_samples_(out, grads.entries, solution.weights, grads.stacked, accumulate)
        return solution

    def small_weights(self, gram: Any) -> Tensor | None:
        """``weights`` without memory of a small K by a shorter way, if the method has one and it applies; else None.

        The argument is unchecked.
        """
        return None

    def small_matrix_(self, out: Any, grads: Tensor) -> bool:
        """``surgery_`` of a small matrix [T, N] into ``out`` [N] by a shorter way, if the method has one and it applies.

        The arguments are unchecked. False: nothing was done.
        """
        return False


class SolverMethod(Method):
    """A method whose weights one of the solvers of ``csrc/weights`` finds, for all groups at once.

    Attributes:
        solver: the solver's name.
        state_name: under which name ``task_state`` keeps the solver's memory; None for a solver without.
    """

    solver: ClassVar[str]
    state_name: ClassVar[str | None] = None

    def options(self, tasks: int, step: Step) -> list[float]:
        """The solver's numbers, in the order of its header."""
        return []

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        """A number a task for the solver, float64 on K's device. [T]"""
        return None

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        w = self.solve(gram, step).weights
        assert w is not None
        return w

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        state = None if self.state_name is None else step.state.get(self.state_name)
        w, status = ops.solve(
            gram.contiguous(),
            self.solver,
            self.options(gram.shape[-1], step),
            self.given(gram, step),
            state,
            None,
            step.state.get("key"),
        )
        return Solution(gram, w, status)


@dataclass(frozen=True)
class MethodSpec:
    """What the registry knows of a method; ``help(spec.cls)`` shows the method's own documentation.

    Attributes:
        name: as the papers write it, lower case.
        family: "gram" (K decides), "scalarization" (K does not matter), "buffered" (keeps tensors of the gradients' size),
            "cross" (multiplies two batches' gradients) or "coordinatewise" (needs the gradients themselves, and has no weights).
        options: option names and their defaults.
        properties: declared mathematical properties; the tests prove each over random gradients.
        degree: A(s G) = s^degree A(G) with the default options; None where there is no such number.
        needs: what a step must tell besides the gradients with the default options: "losses", "against"; see ``Method.needs``.
        paper: where the method comes from.
        summary: the first line of its documentation, the formula.
    """

    name: str
    family: str
    options: Mapping[str, Any]
    properties: frozenset[str]
    paper: str
    summary: str
    degree: float | None
    needs: frozenset[str]
    cls: type[Method] = field(repr=False)

    def build(self, **options: Any) -> Method:
        """A method with these options.

        Raises:
            TypeError: an option the method does not have.
            ValueError: a value the option does not take.
        """
        return self.cls.from_options(**options)


_SPECS: dict[str, MethodSpec] = {}
_DEFAULTS: dict[str, Method] = {}  # each method with its default options; immutable, hence shared
_Class = TypeVar("_Class", bound=type[Method])

ENTRY_POINT_GROUP = "gradsurgery.methods"
"""Where an installed package names its methods: ``name = "module"``, whose import registers the method of that name."""


class _Loading:
    """Whether the entry points were read."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.done = False


_loading = _Loading()

PROPERTIES = {
    "permutation_equivariant": "reordering the tasks reorders the weights, and leaves the result",
    "linear_under_scaling": "A(diag(a c1 + b c2) G) = a A(diag(c1) G) + b A(diag(c2) G) for positive c",
    "direction_invariant_to_row_scaling": "A(diag(c) G) is parallel to A(G) for positive c",
    "non_conflicting": "<g_i, A(G)> >= 0 for every task",
    "sum_without_conflict": "equals the sum when no two tasks conflict",
    "mean_without_conflict": "equals the mean when no two tasks conflict",
    "weights_at_least_one": "w_t >= 1",
    "weights_nonnegative": "w_t >= 0",
    "weights_sum_to_one": "sum_t w_t = 1",
    "zero_row_neutral": "appending a zero gradient changes nothing",
    "one_task_identity": "A of a single gradient is that gradient",
    "duplicate_invariant_direction": "stating every task twice keeps the direction",
}
"""What a method may declare, with its default options: name -> what it says of the result A(G), G [T, N]."""

FAMILIES = ("gram", "scalarization", "buffered", "cross", "coordinatewise")

WEIGHTED = ("gram", "scalarization", "cross")
"""Families whose result is a weighted sum of the gradients that K alone decides."""


def register(
    name: str,
    *,
    family: str,
    paper: str,
    properties: Sequence[str] = (),
    degree: float | None = None,
    needs: Sequence[str] = (),
) -> Callable[[_Class], _Class]:
    """Class decorator that adds a method to the registry; the arguments are those of ``MethodSpec``.

    Raises:
        ValueError: the name is taken, or the family or a property is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, found {family!r}.")
    unknown = sorted(set(properties) - set(PROPERTIES))
    if unknown:
        raise ValueError(f"properties: expected some of {sorted(PROPERTIES)}, found {unknown}.")

    def add(cls: _Class) -> _Class:
        if name in _SPECS:
            raise ValueError(f"name: a method {name!r} is registered already, by {_SPECS[name].cls.__qualname__}.")
        options = {}
        for option in fields(cls):  # type: ignore[arg-type]  # every method is a dataclass
            options[option.name] = option.default_factory() if option.default_factory is not MISSING else option.default
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        declared = frozenset(properties)
        cls.spec = MethodSpec(name, family, MappingProxyType(options), declared, paper, summary, degree, frozenset(needs), cls)
        _SPECS[name] = cls.spec
        return cls

    return add


def methods() -> dict[str, MethodSpec]:
    """All registered methods by name, those of installed packages included."""
    _load_entry_points()
    return dict(_SPECS)


def _load_entry_points() -> None:
    """Imports, once, what installed packages offer under the entry point group; what breaks is said and left out."""
    with _loading.lock:
        if _loading.done:
            return
        _loading.done = True  # at once, for a package may ask for the methods while it is imported
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            problem = None
            try:
                entry.load()
                if entry.name not in _SPECS:
                    problem = f"{entry.value} registers no method of this name"
            except Exception as error:  # whatever another package does wrong
                problem = f"{type(error).__name__}: {error}"
            if problem:
                package = "an unknown package" if entry.dist is None else f"the package {entry.dist.name!r}"
                warnings.warn(
                    f"The method {entry.name!r} of {package} is left out ({entry.value} in the entry points "
                    f"{ENTRY_POINT_GROUP!r}): {problem}.",
                    RuntimeWarning,
                    stacklevel=3,
                )


def build(method: str | Method, **options: Any) -> Method:
    """The method of a name with options, or the method itself.

    Raises:
        ValueError: an unknown name.
        TypeError: what is neither a name nor a method, an option the method does not have, or options beside a method that is
            built already.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(f"options {sorted(options)} cannot change the given {type(method).__name__}; build it with them.")
        return method
    given: object = method
    if isinstance(given, type) and issubclass(given, torch.optim.Optimizer):
        raise TypeError(
            f"method: expected a method's name or a built method, found the class {given.__name__}, an optimizer. "
            f"{given.__name__} wraps an optimizer; name the method in lower case, such as 'pcgrad'."
        )
    if not isinstance(method, str):
        raise TypeError(f"method: expected a method's name or a built method, found {method!r}.")
    if not options:
        default = _DEFAULTS.get(method)
        if default is None:
            default = _spec(method).build()
            if not torch.compiler.is_compiling():  # a graph cannot add to the table
                _DEFAULTS[method] = default
        return default
    if torch.compiler.is_compiling():  # a graph can neither read the cache nor add to the table
        return _spec(method).build(**options)
    try:
        return _cached(method, tuple(options), *options.values())
    except TypeError:  # an unhashable value; building says whether it is wrong
        return _spec(method).build(**options)


def _spec(name: str) -> MethodSpec:
    spec = _SPECS.get(name)
    if spec is None:
        _load_entry_points()
        spec = _SPECS.get(name)
    if spec is None:
        raise ValueError(expected("method", name, _SPECS))
    return spec


@lru_cache(maxsize=256, typed=True)  # typed: 1.0 is not the seed 1
def _cached(name: str, names: tuple[str, ...], *values: Any) -> Method:
    if any(isinstance(value, Tensor) for value in values):
        raise TypeError("not cached: a tensor would be kept alive")
    return _spec(name).build(**dict(zip(names, values, strict=True)))


def present_count(tasks: int, step: Step) -> int:
    """How many tasks have a gradient in this step."""
    return tasks if step.present is None else sum(step.present)


def check_takes_against(method: Method) -> None:
    """Raises unless a method multiplies the gradients of two batches.

    Raises:
        ValueError: it would leave those of the second one out.
    """
    if "against" not in method.needs:
        takers = ", ".join(name for name, spec in methods().items() if "against" in spec.needs)
        raise ValueError(
            f"against: expected none, as method {method.spec.name!r} works on one batch's gradients; those that take a second "
            f"batch are {takers}."
        )


def required_losses(method: Method, step: Step) -> Tensor:
    """The step's losses.

    Raises:
        ValueError: the caller did not tell them.
    """
    if step.losses is None:
        raise ValueError(
            f"losses: method {method.spec.name!r} needs the tasks' losses, found none. Pass losses= to gradsurgery.weights or "
            "gradsurgery.aggregate, or call observe(losses) on the GradientAggregator before the backward pass."
        )
    return step.losses


def check_gram(gram: Tensor) -> None:
    """Raises unless ``gram`` is a square float64 matrix, or several of them."""
    if not isinstance(gram, Tensor):
        raise TypeError(f"gram: expected a [T, T] float64 tensor, found {type(gram).__name__}.")
    if gram.dim() not in (2, 3) or gram.shape[-2] != gram.shape[-1] or gram.shape[-1] == 0:
        raise ValueError(f"gram: expected shape [T, T] with T >= 1, found {list(gram.shape)} (or [G, T, T], one K a group).")
    if gram.dtype != torch.float64:
        raise TypeError(f"gram: expected float64 (surgery is decided in double precision), found {gram.dtype}.")
