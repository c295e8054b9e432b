"""Windows of a text as samples: the bytes that the trunk reads, and the bytes that the heads have to name."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORE = -100
"""The target where a head looks beyond the end of the text."""

Sample = dict[str, Tensor]


def window(text: Tensor, start: int, context: int, tokens: int) -> Sample:
    """The "input", `context` bytes from `start` on, int64 [context], and the "target"s that follow, [context + tokens − 1].

    target[t + k − 1] is text[start + t + k], what head k is asked at position t (see `targets`). Beyond the end of the text the
    input is 0, which no earlier position sees, and the target IGNORE.
    """
    piece = text[start : start + context + tokens].long()
    padded = torch.full((context + tokens,), IGNORE, dtype=torch.int64)
    padded[: len(piece)] = piece
    return {"input": padded[:context].clamp(min=0), "target": padded[1:]}


def targets(target: Tensor, ahead: int, context: int) -> Tensor:
    """What the head that looks `ahead` ≥ 1 bytes ahead is asked, [..., context + tokens − 1] -> [..., context]."""
    return target[..., ahead - 1 : ahead - 1 + context]


class RandomWindows(Dataset[Sample]):
    """`count` windows that begin anywhere in the text; where is a function of (seed, epoch, index) alone."""

    def __init__(self, text: Tensor, context: int, tokens: int, *, count: int, seed: int) -> None:
        self.text, self.context, self.tokens, self.count, self.seed = text, context, tokens, count, seed
        # In shared memory, so that the workers of a persistent loader see set_epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the windows of the coming epoch; call it before iterating over the loader."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0..{self.count - 1}, found {index}")
        last = len(self.text) - self.context - self.tokens  # every head has a target everywhere
        start = int(np.random.default_rng((self.seed, int(self.epoch), index)).integers(last + 1))
        return window(self.text, start, self.context, self.tokens)


class TiledWindows(Dataset[Sample]):
    """The text cut into windows of `context` bytes side by side, the first `count` of them at most; the last may be padded."""

    def __init__(self, text: Tensor, context: int, tokens: int, *, count: int | None) -> None:
        self.text, self.context, self.tokens = text, context, tokens
        whole = -(-(len(text) - 1) // context)  # the last byte has nothing to predict
        self.count = whole if count is None else min(count, whole)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0..{self.count - 1}, found {index}")
        return window(self.text, index * self.context, self.context, self.tokens)
