"""What a GPU ran, as the profiler tells it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def kernels_of(call: Callable[[], object]) -> list[str]:
    """The names of the kernels that a call launches."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
