"""What is trained, without data or metrics: each head's cross-entropy on the byte that it looks ahead to."""

from collections.abc import Mapping
from math import log

import torch.nn.functional as F
from harness.precision import at_least_float32
from torch import Tensor

from multitoken.data.windows import IGNORE, targets
from multitoken.model import MultiTokenModel

NATS_PER_BIT = log(2)


def task_names(tokens: int) -> tuple[str, ...]:
    """next1, the next byte, to next`tokens`."""
    return tuple(f"next{ahead}" for ahead in range(1, tokens + 1))


def cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """−log softmax(logits)[target] in nats, float32 or better, over targets other than IGNORE. logits [B, C, V], target [B, C]."""
    rows = logits.flatten(0, 1)  # [B·C, V]
    return F.cross_entropy(at_least_float32(rows), target.flatten(), ignore_index=IGNORE, reduction=reduction)


class FutureTokens:
    """The model and the losses of its tasks on batches of `multitoken.data.windows.Sample`."""

    def __init__(self, model: MultiTokenModel) -> None:
        self.model = model
        self.tasks = tuple(model.heads)
        self.ahead = {task: ahead for ahead, task in enumerate(self.tasks, start=1)}

    def represent(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Bytes [B, C] -> [B, C, width]"""
        features: Tensor = self.model.trunk(batch["input"])
        return features

    def loss(self, task: str, features: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of one head; every training window holds as many targets for it, on whatever rank."""
        return cross_entropy(self.model.heads[task](features), self.target(task, batch))

    def target(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, C]: the bytes that the task asks for."""
        return targets(batch["target"], self.ahead[task], batch["input"].shape[1])
