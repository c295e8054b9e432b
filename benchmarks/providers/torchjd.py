"""TorchJD's PCGrad aggregator (https://github.com/TorchJD/torchjd), version 0.18, on the same matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .provider import Provider, Run


def prepare(grads: Tensor) -> Run:
    from torchjd.aggregation import PCGrad

    aggregator = PCGrad()

    def run() -> Tensor:
        result: Tensor = aggregator(grads)
        return result

    return run


def orders(tasks: int) -> list[list[int]]:
    return [torch.randperm(tasks).tolist() for _ in range(tasks)]


TORCHJD = Provider("torchjd", "TorchJD", prepare, orders)
