"""Vision Transformer as an encoder: one map from its last block, made into four."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer  # type: ignore[import-untyped]

from nyuv2.models.encoder import Encoder
from nyuv2.models.resize import resize
from nyuv2.models.swin import whole_patches


class PatchEmbedding(nn.Module):
    """Image [B, 3, h·patch, w·patch] -> class token and patches, with their positions [B, 1 + h·w, D].

    Positions are learned on a square grid and interpolated to h × w in every forward pass: torchvision's
    `interpolate_embeddings` makes square grids alone, and once.
    """

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.projection, self.class_token = network.conv_proj, network.class_token
        self.position = network.encoder.pos_embedding  # [1, 1 + side², D]
        self.side = network.image_size // network.patch_size

    def forward(self, image: Tensor) -> Tensor:
        patches = self.projection(image)  # [B, D, h, w]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        return tokens + self.positions(patches.shape[-2:])

    def positions(self, grid: Sequence[int]) -> Tensor:
        """The class token's position and those of an h × w grid. [1, 1 + h·w, D]"""
        square = self.position[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))  # [1, D, side, side]
        return torch.cat([self.position[:, :1], resize(square, grid).flatten(2).transpose(1, 2)], 1)


class ViTEncoder(Encoder):
    """ViT (Dosovitskiy et al., ICLR 2021) and the simple feature pyramid of ViTDet (Li et al., ECCV 2022).

    The blocks make four stages of one resolution, of which the last one's map [B, D, H/16, W/16] is brought to strides 4, 8, 16
    and 32 by transposed convolutions or pooling. As in ViTDet these are new layers, at home in no stage: they always train.
    Attention is global, where ViTDet has windows. An image that is no whole number of patches is resized to the next one, so
    that a map always covers exactly the image.
    """

    def __init__(self, network: VisionTransformer) -> None:
        blocks = list(network.encoder.layers)
        ends = [len(blocks) * stage // 4 for stage in range(5)]
        stages = [nn.Sequential(*blocks[start:end]) for start, end in pairwise(ends)]
        stages[0].insert(0, PatchEmbedding(network))
        stages[3].append(network.encoder.ln)
        width, patch = network.hidden_dim, network.patch_size
        channels = (width // 4, width // 2, width, width)
        super().__init__(stages, channels, strides=(patch // 4, patch // 2, patch, patch * 2))
        self.patch = patch
        self.pyramid = nn.ModuleList([
            nn.Sequential(
                nn.ConvTranspose2d(width, width // 2, 2, stride=2), ChannelNorm(width // 2), nn.GELU(),
                nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
            ),
            nn.ConvTranspose2d(width, width // 2, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),
        ])  # fmt: skip

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = whole_patches(image, self.patch)
        tokens = super().forward(resize(image, (height, width)))[-1]
        features = tokens[:, 1:].transpose(1, 2).unflatten(2, (height // self.patch, width // self.patch))
        return [scale(features) for scale in self.pyramid]


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of every pixel's channels, [B, C, h, w]."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)
