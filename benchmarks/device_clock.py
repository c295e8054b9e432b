"""Time on the device itself: between two events, with the caches flushed or not, of calls or of replays of a CUDA graph."""

from __future__ import annotations

import torch
from timing import Call, Sample, host_clock

_HEAD_START = 200_000  # of the device's cycles, 0.1 ms: the host issues a call meanwhile, and its pace is not measured
_WARM_CALLS = 3


def device_clock(device: torch.device, flushed: bool) -> Sample:
    """Samples of the device's own time; on a CPU, of the host's.

    Args:
        device: where the calls run.
        flushed: before each sample more is written than the L2 cache holds, so that nothing of the call's is in it. On a CPU
            nothing is flushed.
    """
    if device.type == "cpu":
        return host_clock(device)
    rubbish = torch.empty(3 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(call: Call, repeats: int) -> float:
        torch.cuda.synchronize(device)
        if flushed:
            rubbish.zero_()
        torch.cuda._sleep(_HEAD_START)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    return sample


def replayed(call: Call, device: torch.device) -> Call:
    """The replay of a CUDA graph of the call, which must not wait for the device; on a CPU, the call."""
    if device.type == "cpu":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_CALLS):  # loads kernels, and makes what is kept between calls
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
