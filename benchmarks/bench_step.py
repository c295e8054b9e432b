"""A training step of ResNet-18 with three tasks: the summed loss, and the two forms of surgery at the representation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from step import FORMS, Batch, Experiment


@pytest.mark.parametrize("form", FORMS)
def bench_step(benchmark: Any, finished: Callable[..., Any], device: torch.device, form: str) -> None:
    benchmark.group = "training step"
    step = Experiment(device, Batch(count=8, size=64), dense=False).steps()[form]
    benchmark.pedantic(finished(step), rounds=20, warmup_rounds=3)
