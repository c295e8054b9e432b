"""Normalization, encoder and decoder: what all tasks share; and which of its stages train."""

import torch
from torch import Tensor, nn

from nyuv2.models.encoder import Encoder
from nyuv2.models.mtan import SegNetDecoder
from nyuv2.models.pyramid import Pyramid
from nyuv2.models.refinenet import RefineNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Trunk(nn.Module):
    """Image [B, 3, H, W] in 0..1 -> the decoder's output: the shared representation, where task gradients meet."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, decoder: RefineNet | Pyramid | SegNetDecoder) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.encoder, self.decoder = encoder, decoder
        self.frozen = 0

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor] | dict[str, list[Tensor]]:
        return self.decoder(self.encoder((image - self.mean) / self.std))  # type: ignore[no-any-return]

    def freeze(self, count: int) -> None:
        """Train all but the encoder's first `count` stages: these get no gradients, and normalize by running statistics."""
        self.frozen = count
        for index, stage in enumerate(self.encoder.stages):
            stage.requires_grad_(index >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        for stage in self.encoder.stages[: self.frozen]:
            stage.eval()
        return self
