"""What ``diagnose`` says on one of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs


def losses(model: Any, batch: Tensor) -> list[Tensor]:
    out = model(batch)
    return [out[:, 0].square().mean(), out[:, 1].abs().mean()]


def diagnosed(rank: int) -> tuple[str, Tensor, list[str]]:
    """The text of a plain model, its K, and what is said of wrapped ones."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(rank))
    for p in model.parameters():
        nn.init.constant_(p, 0.1)
    found = gs.diagnose(model, batch, losses)
    said = [refusal(DistributedDataParallel(model)), refusal(nn.ModuleList([DistributedDataParallel(model)]))]
    return str(found), found.gram, [*said, refusal(fully_shard(model))]


def refusal(model: nn.Module) -> str:
    """What is said of a model that is not diagnosed."""
    try:
        gs.diagnose(model, None, losses)
    except ValueError as error:
        return str(error)
    return "nothing"
