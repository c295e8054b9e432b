"""Which nodes of autograd's graph belong to one block under ``torch.utils.checkpoint(use_reentrant=False)``.

Every backward pass that needs anything of what such a block saved runs the whole block forward again, and keeps nothing of that for
the next pass: two passes of a task, each through a part of the block, are two recomputations where one would do.

torch tells no one what it checkpointed, but what a node saved tells which function unpacks it, and that of a checkpoint has the
block's frame in its closure. These names are torch's own business: where a version lacks one, no block is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch.utils.checkpoint
from torch.autograd.function import BackwardCFunction

_MODULE = "torch.utils.checkpoint"
_FRAME = getattr(torch.utils.checkpoint, "_CheckpointFrame", ())  # isinstance of () is never true

_SAVED = getattr(torch._C._autograd, "SavedTensor", ())

_FUNCTION = ("_raw_saved_tensors",)
"""Where a ``torch.autograd.Function`` has what it saved; such types are not kept in a cache, as they are anybody's."""

_BESIDE = {"_raw_saved_running_mean", "_raw_saved_running_var", "_raw_saved_reserve"}
"""What batch norm saves beside its input: what one hook has packed, it has packed all."""


def blocks_of(nodes: Sequence[Any]) -> list[tuple[int, int]]:
    """The positions of the first and of the last node of each checkpointed block, ascending.

    Blocks that lie within others, or between whose nodes other blocks' stand, are one: no two of what is returned overlap. Nodes
    that save nothing belong to none, and what other hooks have packed, as ``save_on_cpu``'s, makes none: it is not recomputed.

    Args:
        nodes: in the order in which a backward pass runs through them.
    """
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    around: dict[Any, set[Any]] = {}
    for k, node in enumerate(nodes):
        for hook in _unpacking(node):
            frame = _frame_of(hook)
            if frame is None:
                continue
            if frame not in around:
                around[frame] = _with_outer(frame)
            for each in around[frame]:
                first.setdefault(each, k)
                last[each] = k
    blocks: list[tuple[int, int]] = []
    for frame, a in first.items():  # ascending, as they were met
        b = last[frame]
        if blocks and a <= blocks[-1][1]:
            blocks[-1] = (blocks[-1][0], max(blocks[-1][1], b))
        else:
            blocks.append((a, b))
    return blocks


def _unpacking(node: Any) -> Sequence[Any]:
    """The functions that unpack what a node saved, without torch's own; none where it was let go of, as torch says in good time."""
    kind: Any = type(node)
    found = []
    try:
        for name in _FUNCTION if issubclass(kind, BackwardCFunction) else _fields(kind):
            saved = getattr(node, name)
            for each in saved if type(saved) is tuple else (saved,):
                hook = getattr(each, "unpack_hook", None)
                if hook is not None:
                    found.append(hook)
    except RuntimeError:
        return ()
    return found


@cache
def _fields(kind: type) -> tuple[str, ...]:
    """The attributes in which nodes of one of autograd's own types have what they saved."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_") and name not in _BESIDE)


def _frame_of(hook: Any) -> Any:
    """The frame of the checkpoint whose function unpacks; None where it is another's."""
    if getattr(hook, "__module__", None) != _MODULE:
        return None
    contents = [cell.cell_contents for cell in getattr(hook, "__closure__", None) or ()]
    return next((each for each in contents if isinstance(each, _FRAME)), None)


def _with_outer(frame: Any) -> set[Any]:
    """A block, and all that it lies in: those that have its arguments, which it asks for when it is recomputed."""
    found, waiting = {frame}, [frame]
    while waiting:
        inner = waiting.pop()
        arguments = getattr(inner, "saved_args", None)
        if arguments is None:  # before torch 2.12 a node of their own had them
            hooks = _unpacking(getattr(getattr(inner, "input_saver", None), "grad_fn", None))
        else:
            saved = [argument for argument in arguments if isinstance(argument, _SAVED)]  # the others are as they were given
            hooks = [hook for hook in (getattr(each, "unpack_hook", None) for each in saved) if hook is not None]
        further = {_frame_of(hook) for hook in hooks} - found - {None}
        found |= further
        waiting += further
    return found
