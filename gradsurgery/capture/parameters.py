"""Form C: the gradients of T losses at the parameters that the tasks share, taken as autograd makes them, without a copy."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .gradients import DTYPES

TaskLosses: TypeAlias = Mapping[str, Any] | Sequence[Any]
"""A scalar loss a task, or a list of them (the task has several batches), None for an absent one; by name, or in order."""

Parameters: TypeAlias = nn.Module | Iterable[Tensor | tuple[str, Tensor]]
"""A module, parameters, or named parameters."""


def task_losses(losses: TaskLosses, least: int = 1) -> list[list[Tensor]]:
    """The losses of each task; no loss for an absent one. [T]

    Args:
        losses: as the caller gave them.
        least: how many tasks have to have one.

    Raises:
        TypeError: what is no loss.
        ValueError: no task, no loss at all, one without grad, or the same one twice.
    """
    if isinstance(losses, (str, Tensor)) or not isinstance(losses, (Mapping, Sequence)):
        hint = "list(losses)" if getattr(losses, "ndim", 0) == 1 else "the tasks' losses, not their sum"
        raise TypeError(
            f"losses: expected a dict by task or a sequence with one loss a task, found {type(losses).__name__}. Pass {hint}."
        )
    pairs = list(losses.items()) if isinstance(losses, Mapping) else list(enumerate(losses))
    found = [_of_one_task(loss, f"losses[{name!r}]") for name, loss in pairs]
    if sum(map(bool, found)) < least:
        raise ValueError(f"losses: expected a loss of at least one task, found {'only None' if found else 'none'}.")
    known: dict[int, str] = {}
    for (name, _), own in zip(pairs, found, strict=True):
        for loss in own:
            if id(loss) in known:
                raise ValueError(
                    f"losses[{name!r}]: expected a loss of its own, found the tensor of losses[{known[id(loss)]}] again."
                )
            known[id(loss)] = repr(name)
    return found


def _of_one_task(loss: Any, name: str) -> list[Tensor]:
    if loss is None:
        return []
    if isinstance(loss, (list, tuple)):
        return [_checked(one, f"{name}[{k}]") for k, one in enumerate(loss)]
    return [_checked(loss, name)]


def _checked(loss: Any, name: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a scalar tensor, a list of them or None, found {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ValueError(f"{name}: expected a scalar, found shape {list(loss.shape)}; reduce it (.mean()) first.")
    if loss.is_complex():
        raise TypeError(f"{name}: expected a real number, found {loss.dtype}; take loss.real or loss.abs().")
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: expected a loss that requires grad, found one without graph: it was detached, computed under no_grad, or "
            "depends on frozen parameters alone. Give None for a task that is absent."
        )
    return loss


@dataclass(frozen=True)
class Parameter:
    """A parameter and what it is called in messages and groups; its name in its module, where that is known."""

    tensor: Tensor
    name: str


def listed(parameters: Parameters, argument: str) -> list[Parameter]:
    """Parameters as a list; those that do not require grad are left out.

    Args:
        parameters: a module, parameters or named parameters.
        argument: what the caller calls them.

    Raises:
        TypeError: what is no parameter, or none of a floating dtype.
        ValueError: one that is listed twice, or is no leaf; none that requires grad, but an empty list.
    """
    given: Iterable[Any] = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(
            f"{argument}: expected a module or parameters, found {type(parameters).__name__}; pass [parameter] for one."
        )
    result: list[Parameter] = []
    seen: dict[int, str] = {}
    for k, entry in enumerate(given):
        name, tensor = entry if isinstance(entry, tuple) and len(entry) == 2 else (f"[{k}]", entry)
        where = f"{argument}{name if name.startswith('[') else f'[{name!r}]'}"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{where}: expected a parameter, found {type(tensor).__name__}.")
        if id(tensor) in seen:
            raise ValueError(f"{where}: expected each parameter once, found {seen[id(tensor)]} again.")
        seen[id(tensor)] = where
        if not tensor.requires_grad:
            continue
        if not tensor.is_leaf:
            raise ValueError(f"{where}: expected a parameter, found the result of a computation, which has no .grad.")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{where}: expected float64, float32, bfloat16 or float16, found {tensor.dtype}.")
        result.append(Parameter(tensor, name))
    if not result and (seen or isinstance(parameters, nn.Module)):
        found = f"{len(seen)} that are frozen (requires_grad=False)" if seen else "a module without any"
        raise ValueError(f"{argument}: expected parameters to train, found {found}.")
    return result


def check_operable(shared: Sequence[Tensor]) -> None:
    """Raises where surgery cannot be done on a parameter that tasks were found to share."""
    devices = list(dict.fromkeys(leaf.device for leaf in shared))
    if len(devices) > 1:
        raise ValueError(f"shared: expected parameters on one device, found them on {', '.join(map(str, devices))}.")
    for leaf in shared:
        if leaf.dtype not in DTYPES:
            raise TypeError(
                f"shared: expected parameters of float64, float32, bfloat16 or float16, found {leaf.dtype}, shape "
                f"{list(leaf.shape)}. Name those to operate on with shared=."
            )


def check_shared(found: Sequence[object], given: Sequence[Parameter] | None, tasks: int) -> None:
    """Raises where there is nothing to operate on.

    Args:
        found: the shared parameters that some task reaches.
        given: those that the caller named.
        tasks: how many are present.
    """
    if found or given == [] or (given is None and tasks < 2):
        return
    if given is not None:
        raise ValueError(
            f"shared: expected parameters that some loss depends on, found {len(given)} that none does. Was the trunk's output "
            "detached, or are they another model's?"
        )
    raise ValueError(
        "shared: expected parameters that two or more of the tasks reach, found none. Was the trunk's output detached, or computed "
        "under no_grad, is the trunk frozen, or left out by inputs=? If the tasks share nothing, pass shared=[]."
    )


def _holders(held: Mapping[Any, Tensor], name: Any) -> tuple[int, int, int]:
    """How many places know a tensor that stands in a dictionary, the tensor that it is a view of, and the memory of both."""
    storage = torch._C._storage_Use_Count(held[name].untyped_storage()._cdata)
    base = held[name]._base
    return sys.getrefcount(held[name]), 0 if base is None else sys.getrefcount(base), storage


_ALONE = {False: _holders({"": torch.empty(1)}, ""), True: _holders({"": torch.empty(2, 2).t()}, "")}
"""For a tensor that nobody else knows: one with memory of its own, and a view that is all that is left of its base."""


def alone(held: Mapping[Any, Tensor], name: Any) -> bool:
    """Whether nobody else knows the memory of a gradient that stands in a dictionary, so that it can be kept and written.

    Autograd hands the same tensor, or views of one, to several leaves (the terms of a sum, the parts of a concatenation), hooks may
    keep what they see, and a node may return the same memory in every pass.
    """
    if held[name].layout is not torch.strided:
        return not held[name]._is_view()
    return not held[name]._is_zerotensor() and _holders(held, name) == _ALONE[held[name]._base is not None]


def grad_dtype(leaf: Tensor) -> torch.dtype:
    """The type that ``leaf.grad`` has, which may be another than the leaf's."""
    return leaf.dtype if leaf.grad_dtype is None else leaf.grad_dtype


def _laid_out_like(gradient: Tensor, leaf: Tensor) -> bool:
    whole = gradient.untyped_storage().nbytes() == gradient.nbytes
    return whole and gradient.stride() == leaf.stride() and gradient.dtype == grad_dtype(leaf)


def added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two gradients, of which one may be sparse."""
    return other + one if one.is_sparse and not other.is_sparse else one + other


def own(gradient: Tensor, leaf: Tensor) -> Tensor:
    """A gradient that nobody else knows, or a copy of it where it is laid out otherwise than its leaf."""
    if gradient.layout is not torch.strided or _laid_out_like(gradient, leaf):
        return gradient
    return _empty_for(leaf).copy_(gradient)


def _empty_for(leaf: Tensor) -> Tensor:
    return torch.empty_like(leaf, dtype=grad_dtype(leaf), requires_grad=False)


def target_for(held: Mapping[Any, Tensor], leaf: Tensor) -> Tensor:
    """Where to write the combination of some tasks' gradients, which nobody else knows: over the last of them, or new memory."""
    last = held[next(reversed(held))]
    return last if _laid_out_like(last, leaf) else _empty_for(leaf)


def plain_sum(held: Mapping[Any, Tensor], leaf: Tensor) -> Tensor:
    """The sum of some tasks' gradients at a leaf that they do not share: a tensor that nobody else holds."""
    first, *others = held.values()
    return own(reduce(added, others, first), leaf)


def writable(grad: Tensor | None) -> bool:
    """Whether a gradient that is there can be added to in place."""
    return grad is not None and grad.layout is torch.strided and torch.ops.aten.is_non_overlapping_and_dense(grad)


def write_grads(written: Sequence[tuple[Tensor, Tensor]], *, accumulate: bool) -> None:
    """Adds gradients to ``.grad``, or puts them there, as autograd does; then runs the parameters' hooks for that.

    Args:
        written: leaves and their gradients, which nobody else holds.
        accumulate: add to what is there.
    """
    with torch.no_grad():
        for leaf, gradient in written:
            held = leaf.grad
            if held is None or not accumulate:
                leaf.grad = gradient
            elif held is not gradient:
                leaf.grad = held.add_(gradient) if writable(held) else added(held, gradient)
    for leaf, _ in written:
        hooks = leaf._post_accumulate_grad_hooks
        for hook in list((hooks or {}).values()):
            hook(leaf)
