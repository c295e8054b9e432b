"""What ranks do in the test of examples/many_gpus.py."""

from __future__ import annotations

import many_gpus
import torch
from torch import Tensor


def train(rank: int, commands: list[list[str]]) -> list[tuple[Tensor, Tensor]]:
    """The losses and the sum of parameters that each command line ends with."""
    return [many_gpus.train(many_gpus.parse(command), torch.device("cpu")) for command in commands]
