"""A transformer trunk with one head a future byte, and one unembedding that all heads share (Gloeckle et al. 2024).

As in the paper, a head is one transformer layer on the trunk's output, and the final normalization and the unembedding matrix are
the same for all heads. They stand behind the point where the tasks' gradients meet, so surgery leaves them alone: they count among
the heads' parameters, and their gradient is the plain sum of what the heads send.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from harness.errors import RunError
from harness.model import MultiTaskModel
from torch import Tensor, nn

BYTES = 256


def check_width(width: int, attention_heads: int) -> None:
    """Raises RunError where attention heads cannot share the width evenly."""
    if width % attention_heads:
        nearest = max(round(width / attention_heads), 1) * attention_heads
        raise RunError(f"--width {width}: expected a multiple of --heads {attention_heads}, which share it evenly; take {nearest}.")


class Layer(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x)), where no position attends to a later one: [B, C, width] -> the same."""

    def __init__(self, width: int, attention_heads: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project_in(self.attention_norm(x)).unflatten(-1, (3, self.attention_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # [B, attention heads, C, width / attention heads] each
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project_out(attended.transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.mlp(self.mlp_norm(x)))


class Trunk(nn.Module):
    """Bytes int64 [B, C], C ≤ context -> the shared representation [B, C, width], where task gradients meet."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, attention_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.layers = nn.Sequential(*(Layer(width, attention_heads) for _ in range(layers)))
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.layers(self.embedding(tokens) + self.position[: tokens.shape[1]]))


class Head(nn.Module):
    """The representation [B, C, width] -> logits [B, C, vocabulary] of one future byte: a layer of its own, then what is shared."""

    def __init__(self, width: int, attention_heads: int, unembedding: nn.Module) -> None:
        super().__init__()
        self.layer = Layer(width, attention_heads)
        self.unembedding = unembedding

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.unembedding(self.layer(features)))


class MultiTokenModel(MultiTaskModel):
    """Trunk and heads; with one task it is an ordinary language model of `layers` + 1 layers."""

    trunk: Trunk

    def __init__(
        self, tasks: Sequence[str], *, context: int, width: int, layers: int, attention_heads: int, vocabulary: int = BYTES
    ) -> None:
        trunk = Trunk(vocabulary, context, width, layers, attention_heads)
        unembedding = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False))
        super().__init__(trunk, {task: Head(width, attention_heads, unembedding) for task in tasks})
