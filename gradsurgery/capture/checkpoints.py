"""Which nodes of autograd's graph belong to one block under ``torch.utils.checkpoint(use_reentrant=False)``.

Every backward pass that needs anything of what such a block saved runs the whole block forward again, and keeps nothing of that for
the next pass: two passes of a task, each through a part of the block, are two recomputations where one would do.

torch tells no one what it checkpointed, but what a node saved tells which function unpacks it, and that of a checkpoint has the
block's frame in its closure. These names are torch's own business: where a version lacks one, no block is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch.utils.checkpoint
from torch.autograd.function import BackwardCFunction

_MODULE = "torch.utils.checkpoint"
_FRAME = getattr(torch.utils.checkpoint, "_CheckpointFrame", ())  # isinstance of () is never true


def blocks_of(nodes: Sequence[Any]) -> list[tuple[int, int]]:
    """The positions of the first and of the last node of each checkpointed block, ascending.

    Blocks that lie within others, or between whose nodes other blocks' stand, are one: no two of what is returned overlap. Nodes that
    save nothing count for none. What was saved by other hooks, as ``save_on_cpu``'s, is no block: it is there once and for all.

    Args:
        nodes: in the order in which a backward pass runs through them.
    """
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    around: dict[Any, set[Any]] = {}
    for k, node in enumerate(nodes):
        hooks = _unpacking(_saved(node))
        for frame in _frames(hooks) if hooks else ():
            if frame not in around:
                around[frame] = _with_outer(frame)
            for each in around[frame]:
                first.setdefault(each, k)
                last[each] = k
    blocks: list[tuple[int, int]] = []
    for frame in first:  # ascending, as they were met
        a, b = first[frame], last[frame]
        if blocks and a <= blocks[-1][1]:
            a, b = blocks[-1][0], max(blocks.pop()[1], b)
        blocks.append((a, b))
    return blocks


def _unpacking(saved: Iterable[Any]) -> list[Any]:
    """The functions that unpack what was saved, without those of torch itself."""
    hooks = []
    for tensor in saved:
        hook = getattr(tensor, "unpack_hook", None)
        if hook is not None:
            hooks.append(hook)
    return hooks


def _saved(node: Any) -> Iterable[Any]:
    """What a node saved, packed; nothing where it was let go of, as torch says when a backward pass gets there."""
    if isinstance(node, BackwardCFunction):  # a torch.autograd.Function, whose type is anybody's and not to be kept in a cache
        try:
            return getattr(node, "_raw_saved_tensors", ())
        except RuntimeError:
            return ()
    found: list[Any] = []
    for name in _fields(type(node)):
        try:
            value = getattr(node, name)
        except RuntimeError:
            return ()
        if type(value) is tuple:
            found += value
        else:
            found.append(value)
    return found


@cache
def _fields(kind: type) -> tuple[str, ...]:
    """The attributes in which nodes of one of autograd's own types have what they saved."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _frames(hooks: Iterable[Any]) -> Iterator[Any]:
    """The frames of the checkpoints among some functions that unpack."""
    for hook in dict.fromkeys(hooks):
        if getattr(hook, "__module__", None) == _MODULE:
            yield from (cell.cell_contents for cell in hook.__closure__ or () if isinstance(cell.cell_contents, _FRAME))


def _with_outer(frame: Any) -> set[Any]:
    """A block, and all that it lies in: those that have its arguments, which it asks for when it is recomputed."""
    found, waiting = {frame}, [frame]
    while waiting:
        inner = waiting.pop()
        arguments = getattr(inner, "saved_args", None)
        if arguments is None:  # before torch 2.12 a node of their own had them
            arguments = _saved(getattr(getattr(inner, "input_saver", None), "grad_fn", None))
        hooks = _unpacking(arguments)
        further = [outer for outer in _frames(hooks) if outer not in found]
        found.update(further)
        waiting += further
    return found

