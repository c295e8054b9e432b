"""Calls of the operator ``solve`` for every registered method that a compiled solver serves, as the method itself makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from methods.gradients import CALM, FEWEST
from torch import Tensor

import gradsurgery as gs
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.methods import SolverMethod, Step, build

SOLVER_METHODS = sorted(name for name, spec in gs.methods().items() if issubclass(spec.cls, SolverMethod))


def task_counts(name: str, most: int) -> range:
    """How many tasks a method takes."""
    return range(FEWEST.get(name, 1), most + 1)


@dataclass(frozen=True)
class SolverCall:
    """The operator's arguments."""

    gram: Tensor
    solver: str
    options: list[float]
    given: Tensor | None
    state: Tensor | None
    key: Tensor | None
    order: Tensor | None = None

    def run(self, ops: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(w, report, state, key) of one call; the arguments stay as they are."""
        state = None if self.state is None else self.state.clone()
        key = None if self.key is None else self.key.clone()
        w, report = ops.solve(self.gram, self.solver, self.options, self.given, state, self.order, key)
        return w, report, state, key

    def on(self, gram: Tensor) -> SolverCall:
        """The same call for another K."""
        return replace(self, gram=gram)


# Options beside the defaults, for every way that a solver can take.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "alignedmtl": [{"scale_mode": "median"}, {"scale_mode": "rmse", "pref": "sum"}],
    "cagrad": [{"c": 0.0}, {"c": 1.5, "rescale": 1}, {"rescale": 2}],
    "config": [{"length": length} for length in ("minimum", "maximum", "harmonic", "arithmetic", "geometric")],
    "dualproj": [{"reg_eps": 1e-4, "norm_eps": 1e-4}],
    "fairgrad": [{"alpha": 0.5}, {"alpha": 2.0}],
    "mgda": [{"gn": gn} for gn in ("l2", "loss", "loss+")] + [{"ignore_zero_rows": True}],
    "nashmtl": [{"max_norm": 0.0}],
    "upgrad": [{"reg_eps": 1e-4, "norm_eps": 1e-4}],
}


def solver_call(
    name: str,
    tasks: int,
    seed: int = 0,
    groups: int = 0,
    present: tuple[bool, ...] | None = None,
    options: Mapping[str, Any] | None = None,
) -> SolverCall:
    """A call on conflicting gradients, absent ones of which are zero; K [T, T], or [G, T, T] with groups."""
    generator = torch.Generator().manual_seed(1000 * seed + tasks)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = (groups,) if groups else ()
    numel = 2 * tasks + 1
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(tasks)[:tasks, None]
    G = normal(*batch, tasks, numel) + 0.4 * signs * normal(*batch, 1, numel)
    method = build(name, **CALM.get(name, {}) | dict(options or {}))
    assert isinstance(method, SolverMethod)
    losses = normal(tasks).exp()
    if present is not None:
        G = G * torch.tensor(present)[:, None]
        losses = losses.masked_fill(~torch.tensor(present), torch.nan)
    step = Step(present=present, losses=losses)
    gram = G @ G.mT
    states = method.task_state(TaskGradients.of(normal(tasks, numel)), max(groups, 1))
    state = None if method.state_name is None else states[method.state_name]
    key = method.initial_state().get("key")
    return SolverCall(gram, method.solver, method.options(tasks, step), method.given(gram, step), state, key)


def solver_calls(name: str, tasks: int) -> Iterator[SolverCall]:
    """The usual call, one with absent tasks, one for each option, and, where orders matter, one with a given order."""
    usual = solver_call(name, tasks)
    yield usual
    if tasks > 4:
        yield solver_call(name, tasks, present=tuple(t % 3 != 1 for t in range(tasks)))
    for options in OPTIONS.get(name, []):
        yield solver_call(name, tasks, options=options)
    if name == "gradvac":
        order = torch.stack([torch.randperm(tasks, generator=torch.Generator().manual_seed(t)) for t in range(tasks)])
        yield replace(usual, key=None, order=order)
        yield replace(usual, key=None, order=torch.full_like(order, tasks))  # refused


def misfits(call: SolverCall) -> Iterator[tuple[SolverCall, str]]:
    """The call with one argument of another size, and what the operator says of that."""
    T, groups, n = call.gram.shape[-1], call.gram.shape[0] if call.gram.dim() == 3 else 1, len(call.options)
    for options in (call.options[:-1], [*call.options, 1.0], [*call.options, *[1.0] * 40]):
        if len(options) != n:
            message = rf"gradsurgery: solver {call.solver} takes {n} options?, found {len(options)}"
            yield replace(call, options=options), message
    for size in ((), (T - 1,), (T + 1,), (T, T)):
        yield replace(call, given=torch.ones(size, dtype=torch.float64)), rf"gradsurgery: given must be \[{T}\], a number a task"
    gram = call.gram
    for other in (gram.reshape(-1), gram[..., :-1, :].contiguous(), gram.reshape(1, 1, -1, T), gram.reshape(-1, T, T)[:0]):
        if other.dim() == 3 and other.shape[-2] == other.shape[-1] and len(other):
            continue
        yield call.on(other), r"gradsurgery: gram must be \[T, T\] or \[G, T, T\]"
    if call.state is None:
        yield replace(call, state=torch.ones(groups, T, dtype=torch.float64)), rf"gradsurgery: solver {call.solver} takes no state"
        return
    wanted = call.state.numel()
    for count in (0, 1, groups, wanted - groups, wanted - 1, wanted + 1, wanted * T):
        message = rf"solver {call.solver} takes a state of {wanted} numbers for {groups} groups? of {T} tasks, found {count}"
        yield replace(call, state=torch.ones(count, dtype=torch.float64)), message
