"""PCGrad by every provider, grouped by case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, gradients
from oracle import SMALL_NUMEL, check
from providers import PROVIDERS


@pytest.mark.parametrize("name", PROVIDERS)
def bench_pcgrad(benchmark: Any, finished: Callable[..., Any], device: torch.device, case: Case, name: str) -> None:
    reason = case.left_out(name)
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    provider = PROVIDERS[name]
    grads = gradients(case, device)
    small = grads[:, :SMALL_NUMEL].contiguous()
    check(provider, provider.prepare(small), small)
    run = provider.prepare(grads)
    benchmark.group = str(case)
    benchmark.extra_info["error"] = check(provider, run, grads)
    benchmark(finished(run))
