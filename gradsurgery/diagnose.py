"""``diagnose``: whether tasks conflict, and in which layers, from one batch and before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery import ops
from gradsurgery.capture.as_it_was import as_it_was
from gradsurgery.capture.batch import Batch
from gradsurgery.capture.column import Column, entries
from gradsurgery.capture.grouping import group_labels
from gradsurgery.capture.parameters import Parameter, Parameters, TaskLosses, listed, task_losses
from gradsurgery.capture.passes import Passes
from gradsurgery.capture.tasks import task_names
from gradsurgery.diagnosis import Diagnosis
from gradsurgery.distributed import several_processes
from gradsurgery.distributed.gathered import is_dtensor
from gradsurgery.monitor import Statistics
from gradsurgery.one_pass import SLICES, shared_leaves

_COMPILED = "_orig_mod."  # what torch.compile adds to the names of a module's parameters
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def diagnose(model: nn.Module, batch: Any, losses: Callable[[Any, Any], TaskLosses], shared: Parameters | None = None) -> Diagnosis:
    """Whether the tasks' gradients conflict at the parameters that they share, layer by layer, on one batch.

    One forward pass and a backward pass a task: the gradients are exactly those of ``surgery.backward(losses)``, and their products
    are summed in float64. Nothing is trained and nothing is left behind: parameters, buffers (BatchNorm's statistics), ``.grad``,
    training mode and other attributes of the modules, and the random numbers are put back bit by bit, whatever happens; hooks that
    wait for ``.grad``, such as optimizers in the backward pass, are not called. The model runs in the mode it is in, under the
    autocast that holds where this is called. What torch.compile compiled runs as it is written.

    In memory meanwhile: a copy of the model's parameters and buffers, and T gradients of a few layers at a time (of a checkpointed
    block as a whole; of all layers, where the graph has no narrow place, as in a U-Net). With several processes it is about this
    rank's batch alone.

    Args:
        model: the whole model, without a wrapper for several processes: what ``losses`` uses beside it is not put back.
        batch: handed to ``losses`` as it is.
        losses: a function of (model, batch) that returns what ``surgery.backward`` takes: a scalar a task, by name or in order; a
            list where a task has several, None for a task that is absent.
        shared: a module, parameters, or named parameters; frozen ones are left out. None: all that two tasks reach. Layers are
            called as the module, or else the model, calls them.

    Raises:
        TypeError, ValueError: what is no module, no function or no loss, or a loss without graph; losses of less than two tasks;
            nothing shared, or parameters on several devices.
        RuntimeError: inside ``torch.inference_mode()``; a re-entrant checkpoint; ``losses`` called ``backward()``.
    """
    _check(model, losses)
    given = None if shared is None else listed(shared, "shared")
    if given == []:
        raise ValueError("shared: expected parameters, found none; leave it out for all that two tasks reach.")
    modules = [model, shared] if isinstance(shared, nn.Module) else [model]
    with as_it_was(modules, [p.tensor for p in given or []], batch):
        names, present = _evaluated(model, batch, losses)
        written = [name for root in modules for name, p in root.named_parameters() if p.grad is not None]
        if written:
            raise RuntimeError(
                f"losses: expected a function that returns losses, found that it called backward(), which left a gradient in "
                f"{written[0]}.grad (and is undone). Leave backward() out."
            )
        present.shared = given
        layers, grams = _grams(present, dict(model.named_parameters()))
        values = present.values
    places = torch.tensor([names.index(name) for name in present.names])
    T = len(names)
    whole = torch.zeros(len(layers), T, T, dtype=torch.float64)
    whole[:, places[:, None], places] = grams
    here = tuple(name in values for name in names)
    told = tuple(float(values[name]) if name in values else None for name in names)
    ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several_processes() else None
    return Diagnosis(Statistics(0, tuple(names), here, whole, None, groups=layers, _losses=told), ranks)


def _check(model: nn.Module, losses: object) -> None:
    """Raises where there is nothing to run, or a wrapper waits for backward passes that will not come."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}.")
    if not callable(losses) or isinstance(losses, nn.Module):
        raise TypeError(
            f"losses: expected a function of (model, batch) that returns one loss a task, found {type(losses).__name__}. "
            "diagnose runs the forward pass itself, to put back what it changes: pass lambda model, batch: {'seg': …, 'depth': …}."
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError("diagnose: expected to be called outside torch.inference_mode(), which records no graph.")
    for name, module in model.named_modules():
        if type(module).__name__ in _WRAPPERS:
            where = "the model itself" if not name else f"module {name!r}"
            raise ValueError(
                f"model: expected one without a wrapper for several processes, found {type(module).__name__} around {where}, which "
                "waits for backward passes of its own. Diagnose before wrapping, or pass model.module (of DistributedDataParallel)."
            )
    for name, p in model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"model: expected parameters with shapes, found the lazy {name!r}; run the model once before.")
        if is_dtensor(p):
            raise ValueError(
                f"model: expected whole parameters, found {name!r} in parts on several processes (fully_shard, "
                "parallelize_module). Diagnose before they are divided."
            )


def _evaluated(model: nn.Module, batch: Any, losses: Callable[[Any, Any], TaskLosses]) -> tuple[list[str], Batch]:
    """The names of all tasks, and the losses of those that are present."""
    returned = losses(model, batch)
    found = task_losses(returned)
    names = list(returned) if isinstance(returned, Mapping) else task_names(len(found))
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"losses: expected tasks' names to be strings, found {names}.")
    here = [t for t, own in enumerate(found) if own]
    if len(here) < 2:
        raise ValueError(
            f"losses: expected losses of two tasks or more, found one, of {names[here[0]]!r}; give a batch that has several tasks."
        )
    return names, Batch([names[t] for t in here], [found[t] for t in here], None, None)


def _grams(batch: Batch, named: dict[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """The layers that tasks share, and K of each. [G], [G, T, T] float64, on the CPU

    Each part of the graph lets go of its gradients as soon as their products are known.
    """
    leaves = shared_leaves(batch.graph(), batch.shared, len(batch.names))
    batch.wanted = {key: Parameter(leaf, "") for key, leaf in leaves.items()}
    graph, T = batch.graph(), len(batch.names)
    running = Passes(graph, batch.flows())
    largest = sum(leaf.nbytes for leaf in leaves.values()) // SLICES
    keys: list[int] = []
    parts: list[Tensor] = []
    for region in graph.regions(graph.slices(graph.narrow(), largest)):
        rows = running.through(region, retain_graph=False)
        reached = [leaves[key] for key, held in rows.items() if held]
        if reached:
            keys += map(id, reached)
            columns = [Column.of(leaf, rows[id(leaf)], range(T)) for leaf in reached]
            parts.append(ops.gram(entries(columns, T), T, False, list(range(len(columns)))))
    of_leaf = dict(zip(keys, torch.cat(parts).cpu(), strict=True))
    parameters = [p for p in _named(batch.shared, leaves, named) if id(p.tensor) in of_leaf]
    groups, labels = group_labels([p.name for p in parameters], "layer")
    grams = torch.zeros(len(labels), T, T, dtype=torch.float64)
    grams.index_add_(0, torch.tensor(groups), torch.stack([of_leaf[id(p.tensor)] for p in parameters]))
    return tuple(label or "(itself)" for label in labels), grams


def _named(given: list[Parameter] | None, leaves: dict[int, Tensor], named: dict[str, Tensor]) -> list[Parameter]:
    """The shared parameters, by the caller's names and in his order, or else by the model's; tensors without a name come last."""
    names = {id(tensor): name.replace(_COMPILED, "") for name, tensor in named.items()}
    if given is None:
        known = [Parameter(leaves[key], name) for key, name in names.items() if key in leaves]
        others = [leaf for key, leaf in leaves.items() if key not in names]
        return known + [Parameter(leaf, f"shared[{k}].tensor") for k, leaf in enumerate(others)]
    unnamed = {id(p.tensor): f"shared{p.name}.tensor" for p in given if p.name.startswith("[")} | names
    return [Parameter(p.tensor, unnamed[id(p.tensor)] if p.name.startswith("[") else p.name.replace(_COMPILED, "")) for p in given]
