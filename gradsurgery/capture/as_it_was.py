"""A model in which nothing has happened: what a forward pass, and a backward pass of others' code, may change is put back."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._pytree import tree_leaves

_MAPPINGS = (dict, OrderedDict, defaultdict)
_SEQUENCES = (list, deque)
_CONTAINERS = (*_MAPPINGS, *_SEQUENCES, set)


@contextmanager
def as_it_was(modules: Sequence[nn.Module], parameters: Iterable[Tensor], batch: Any) -> Iterator[None]:
    """Puts back, bit by bit and whatever is raised inside, what running modules changes.

    That is: parameters and buffers (BatchNorm's statistics, spectral norm's vectors, rows that an embedding has rescaled), plain
    attributes of modules and what dicts, lists, deques and sets in them hold, however deep (the training mode, counters, hooks),
    ``requires_grad`` and ``.grad``, and the random numbers of torch on the CPU and on the devices in use, of NumPy, of Python, and
    of generators that modules have as attributes. Objects of other classes are left as they come to be. Inside, ``.grad`` is None.
    A copy of the parameters and buffers is in memory meanwhile.

    Args:
        modules: whose submodules are meant, too.
        parameters: more of them, which may belong to no module here.
        batch: tells, beside the parameters, which devices are in use.
    """
    every = list({id(module): module for root in modules for module in root.modules()}.values())
    leaves = list({id(p): p for p in (*(p for module in every for p in module.parameters(recurse=False)), *parameters)}.values())
    with ExitStack() as back:
        for device_type, devices in _devices((*leaves, *tree_leaves(batch))):
            back.enter_context(torch.random.fork_rng(devices, device_type=device_type))
        back.callback(random.setstate, random.getstate())
        back.callback(np.random.set_state, np.random.get_state())
        tensors = tuple({id(tensor): tensor for tensor in (*leaves, *_tensors(every)) if not tensor.is_inference()}.values())
        back.enter_context(_unsafe_preserve_version_counter(tensors))  # for graphs that wait for their backward pass
        for tensor in tensors:
            back.callback(_put_back, tensor, tensor.detach().clone())
        for module in every:
            back.callback(_put_back_attributes, module, dict(vars(module)))
            for container, value in _held(vars(module).values()):
                back.callback(_put_back_held, container, value)
            for generator in (value for value in vars(module).values() if isinstance(value, torch.Generator)):
                back.callback(generator.set_state, generator.get_state())
        for leaf in leaves:
            back.callback(_put_back_grad, leaf, leaf.requires_grad, leaf.grad)
            leaf.grad = None
        back.callback(torch.clear_autocast_cache)  # of casts that belong to a graph that has been used up
        back.enter_context(torch.enable_grad())
        back.enter_context(_eager())
        yield


def _eager() -> Any:
    """What torch.compile compiled runs as it is written: code for one backward pass would not do for several."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _devices(values: Iterable[Any]) -> list[tuple[str | None, list[int]]]:
    """The devices with random numbers of their own, by type; the CPU's are put back with any."""
    found: dict[str | None, set[int]] = {None: set()}
    for value in values:
        if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
            found.setdefault(value.device.type, set()).add(value.device.index or 0)
    if torch.cuda.is_initialized():
        found.setdefault("cuda", set()).add(torch.cuda.current_device())
    return [(device_type, sorted(indices)) for device_type, indices in found.items()]


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Buffers, and tensors that are plain attributes."""
    for module in modules:
        for value in (*module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                yield value


def _held(attributes: Iterable[Any]) -> list[tuple[Any, Any]]:
    """The containers among these values, and in containers among them, each with a copy of what it holds."""
    found: dict[int, tuple[Any, Any]] = {}
    waiting = list(attributes)
    while waiting:
        value = waiting.pop()
        if type(value) in _CONTAINERS and id(value) not in found:
            found[id(value)] = (value, value.copy())
            waiting += value.values() if isinstance(value, dict) else value
    return list(found.values())


def _put_back(tensor: Tensor, value: Tensor) -> None:
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:  # expanded: all places are one
            tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    with torch.no_grad():
        tensor.copy_(value)


def _put_back_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    own = vars(module)
    for name in own.keys() - attributes.keys():
        del own[name]
    own.update(attributes)


def _put_back_held(container: Any, value: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, _SEQUENCES) else container.update)(value)


def _put_back_grad(leaf: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
    leaf.requires_grad_(requires_grad)
    leaf.grad = grad
