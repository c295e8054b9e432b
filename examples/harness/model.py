"""A network for several tasks: what they share, and what each has for itself."""

from collections.abc import Mapping
from typing import Any

import torch
import torch._functorch.config
from torch import nn


class MultiTaskModel(nn.Module):
    """One trunk, whose output is the shared representation, and a head for each task.

    The heads' gradients meet at the trunk's output. What stands in the trunk is shared; nothing else is.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Trunk and heads with their learning rates, for an optimizer."""
        return [
            {"params": list(self.trunk.parameters()), "lr": lr},
            {"params": list(self.heads.parameters()), "lr": head_lr},
        ]

    def compile_parts(self, *, several_passes: bool) -> None:
        """`torch.compile` the trunk and every head by itself, in place: surgery takes place between compiled graphs.

        Args:
            several_passes: the backward pass of one forward pass runs once for each task (surgery in the space of parameters), for
                which torch's compiler has to keep the buffers that it otherwise reuses; a setting of the whole process.
        """
        if several_passes:
            torch._functorch.config.donated_buffer = False
            torch.compiler.config.cache_key_tag = "several backward passes"
        self.trunk.compile()
        for head in self.heads.values():
            head.compile()
