"""Which parameters are sharded, and whether they are those that get ``.grad`` or the ones that FSDP2 has gathered from them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from gradsurgery.capture.parameters import Parameter, Parameters

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def between_steps(shared: Parameters) -> Parameters:
    """A module that has its sharded parameters again, where FSDP2 left gathered ones in it after the forward pass.

    It does so in the outermost wrapped module, and with ``reshard_after_forward=False``: ``parameters()`` are then others than
    those that the optimizer knows and that get ``.grad``. They are gathered once more in the backward pass.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and isinstance(shared, nn.Module) and any(module._state_dict_pre_hooks for module in shared.modules()):
        shared.state_dict(keep_vars=True)  # FSDP2 shards for it: the way from a submodule to a wrapper further out
    return shared


def is_sharded(shared: Sequence[Parameter] | None) -> bool:
    """Whether some of the parameters are DTensors."""
    return any(is_dtensor(p.tensor) for p in shared or ())


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; without importing what only those have imported who have one."""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def check_whole(shared: Sequence[Parameter] | None, asked: str) -> None:
    """Raises where parameters are sharded, which the method ``asked`` has no way to do."""
    if is_sharded(shared):
        raise ValueError(
            f"{asked}: expected whole parameters, found sharded ones (fully_shard, parallelize_module), of which the wrapper's own "
            "backward pass makes the gradients. Call backward(losses, shared=...) with all losses of the step."
        )


def check_plain(**options: object) -> None:
    """Raises where ``backward`` is asked for what it has no way to do with sharded parameters."""
    usual = {"accumulate": True, "memory": "full", "passes": "sequential"}
    for name, value in options.items():
        if value != usual.get(name):
            found = repr(value) if isinstance(value, (bool, str)) else type(value).__name__
            hint = "Call zero_grad() before" if name == "accumulate" else f"Leave {name} out"
            raise ValueError(
                f"{name}: expected {usual.get(name)!r} with sharded parameters (fully_shard, parallelize_module), of which the "
                f"wrapper's own backward pass makes the gradients, one a task; found {found}. {hint}."
            )


def check_not_gathered(shared: Sequence[Parameter]) -> None:
    """Raises, after a backward pass, where FSDP2 has freed the memory of a parameter: it was the gathered one."""
    for p in shared:
        whole = p.tensor.to_local() if is_dtensor(p.tensor) else p.tensor
        if whole.numel() and not whole.untyped_storage().nbytes():
            raise ValueError(
                f"shared: expected parameters as fully_shard left them, found {p.name}, which FSDP had gathered for this step and "
                "has freed by now. Pass the module, or list its parameters once, before the forward pass."
            )
