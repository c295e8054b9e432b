"""K of gradients of which several ranks have the same part: replicas, and what tensor parallelism leaves whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients


def gram_here(grads: TaskGradients, groups: Sequence[int]) -> Tensor:
    """This rank's part of K, where the values at a position that c ranks have count 1/c. [T, T] or [G, T, T]

    Args:
        grads: this rank's.
        groups: of the positions; empty for one of all. [P]
    """
    of_piece = list(groups)
    if grads.copies is None or all(c == 1 for c in grads.copies):
        return ops.gram(grads.entries, grads.tasks, grads.stacked, of_piece or None)
    pairs = list(zip(of_piece or [0] * grads.pieces, grads.copies, strict=True))
    kinds = sorted(set(pairs))
    number = {pair: k for k, pair in enumerate(kinds)}
    K = ops.gram(grads.entries, grads.tasks, grads.stacked, [number[pair] for pair in pairs])
    K = K / torch.tensor([c for _, c in kinds], dtype=K.dtype).to(K.device, non_blocking=True)[:, None, None]
    if not of_piece:
        return K.sum(0)
    sizes = [sum(of == group for of, _ in kinds) for group in range(kinds[-1][0] + 1)]
    return torch.stack([part.sum(0) for part in K.split(sizes)])
