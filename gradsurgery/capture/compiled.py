"""What torch.compile must have been told before several losses are propagated, one after the other, through what it compiled."""

from __future__ import annotations

from torch.autograd.graph import Node

_COMPILED = "CompiledFunctionBackward"  # the name of a graph of AOTAutograd among autograd's nodes


def is_compiled(node: Node) -> bool:
    """Whether a node of autograd's graph is a whole graph that AOTAutograd made."""
    return node.name() == _COMPILED


def check_several_passes() -> None:
    """Raises unless compiled graphs keep what they saved for their backward pass, so that there can be more than one.

    By default the buffers of the forward pass are donated to the backward pass, which may overwrite them. torch refuses
    ``retain_graph=True`` for a graph that was compiled so; but Inductor's cache on disk does not tell code with donated buffers
    from code without, and a graph that finds such code there gives wrong gradients from its second pass on, without an error. A
    tag in the caches' key keeps them apart.

    Raises:
        RuntimeError: the buffers are donated, or code from caches on disk may have been compiled so.
    """
    import torch._functorch.config as functorch
    import torch.compiler.config as compiler

    if functorch.donated_buffer or not (compiler.cache_key_tag or compiler.force_disable_caches):
        raise RuntimeError(
            "backward: several losses are to be propagated through a part of the network that torch.compile compiled for a single "
            "backward pass, which may overwrite what the forward pass saved. Say so before compiling: "
            "`import torch._functorch.config; torch._functorch.config.donated_buffer = False; "
            "torch.compiler.config.cache_key_tag = 'several passes'` (any word, which keeps code away that was compiled otherwise "
            "and lies in caches on disk). Or use split() or detach(), which propagate through the trunk once. Found "
            f"donated_buffer={functorch.donated_buffer}, cache_key_tag={compiler.cache_key_tag!r}."
        )
