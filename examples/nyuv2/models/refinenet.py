"""Light-Weight RefineNet: one fused map as the representation. With MobileNetV2 before it and small heads after it: HydraNet."""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nyuv2.models.encoder import Encoder
from nyuv2.models.heads import Head
from nyuv2.models.resize import resize


class ChainedResidualPooling(nn.Module):
    """x + p₁ + p₂ + …, where p_k = conv1x1(maxpool5x5(p_{k-1})) and p₀ = x: context gathered in ever wider windows."""

    def __init__(self, channels: int, stages: int = 4) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(stages))

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(features)
        path = features
        for convolution in self.convolutions:
            path = convolution(F.max_pool2d(path, 5, stride=1, padding=2))
            features = features + path
        return features


class RefineNet(nn.Module):
    """Light-Weight RefineNet (Nekrasov, Shen & Reid, BMVC 2018): an encoder's maps -> [B, channels, H/4, W/4].

    Every map is reduced by a 1x1 convolution; from coarse to fine, maps of one stride are summed, refined by chained residual
    pooling, adapted by a 1x1 convolution, resized to the next finer map and added to it. As there, no normalization layers.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.channels, self.sources = channels, encoder.strides
        self.strides = sorted(set(encoder.strides), reverse=True)
        self.reductions = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in encoder.channels)
        self.pooling = nn.ModuleList(ChainedResidualPooling(channels) for _ in self.strides)
        self.adapters = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in self.strides[1:])

    def forward(self, maps: list[Tensor]) -> Tensor:
        reduced = [convolution(features) for convolution, features in zip(self.reductions, maps, strict=True)]
        fused = torch.empty(0)
        for level, stride in enumerate(self.strides):
            same = [features for features, at in zip(reduced, self.sources, strict=True) if at == stride]
            if level > 0:
                same.append(resize(self.adapters[level - 1](fused), same[0].shape[-2:]))
            fused = self.pooling[level](reduce(torch.add, same))
        return fused


class MapHead(Head):
    """The fused map through a depthwise, a pointwise and a 3x3 convolution."""

    def __init__(self, task: str, classes: int, refinenet: RefineNet) -> None:
        super().__init__(task, classes)
        channels = refinenet.channels
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
        )
        self.out = nn.Conv2d(channels, self.outputs, 3, padding=1)
        self.start(self.out)

    def raw(self, features: Tensor) -> Tensor:
        output: Tensor = self.out(self.mix(features))
        return output
