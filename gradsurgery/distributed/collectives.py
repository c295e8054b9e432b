"""torch's collectives on one flat tensor, by the names that this version of torch has for them.

What they return is under way: its ``wait`` lets what follows use the result; on CUDA the host does not wait.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def reduce_scatter(received: Tensor, sent: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Starts the sum over R ranks of ``sent`` [R*S], of which each receives its part [S]."""
    named = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    work: dist.Work = getattr(dist, named)(received, sent, group=group, async_op=True)
    return work


def all_gather(received: Tensor, sent: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Starts to put every rank's ``sent`` [S] beside the others' in ``received`` [R*S]."""
    named = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    work: dist.Work = getattr(dist, named)(received, sent, group=group, async_op=True)
    return work


def all_reduce(summed: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Starts the sum over the ranks, in place."""
    work: dist.Work = dist.all_reduce(summed, group=group, async_op=True)
    return work
