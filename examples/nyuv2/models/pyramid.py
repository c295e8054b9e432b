"""Feature pyramid: every scale is part of the representation, and each head fuses them for itself."""

from functools import reduce

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]

from nyuv2.models.encoder import Encoder
from nyuv2.models.heads import Head
from nyuv2.models.resize import resize


class Pyramid(nn.Module):
    """torchvision's FPN (Lin et al., CVPR 2017): an encoder's maps -> {"stride4": [B, channels, H/4, W/4], …}, finest first.

    The representation is this dict, and no map fused from it: what fuses is small, and what a task wants of each scale differs
    (the wide context of a class, the fine edges of a normal), so it belongs to the heads. The four scales together have a third
    more numbers than the finest alone, and surgery sees all of them as one vector.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.channels = channels
        # Where several stages have one stride, the last is read, which has seen the most.
        self.sources = {f"stride{stride}": index for index, stride in enumerate(encoder.strides)}
        self.fpn = FeaturePyramidNetwork([encoder.channels[index] for index in self.sources.values()], channels)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return dict(self.fpn({level: maps[index] for level, index in self.sources.items()}))


class PyramidHead(Head):
    """A 1x1 convolution for each scale, their sum at the finest resolution, ReLU, and a 1x1 convolution to the outputs."""

    def __init__(self, task: str, classes: int, pyramid: Pyramid) -> None:
        super().__init__(task, classes)
        self.laterals = nn.ModuleDict({level: nn.Conv2d(pyramid.channels, pyramid.channels, 1) for level in pyramid.sources})
        self.out = nn.Conv2d(pyramid.channels, self.outputs, 1)
        self.start(self.out)

    def raw(self, features: dict[str, Tensor]) -> Tensor:
        size = next(iter(features.values())).shape[-2:]
        scales = [resize(lateral(features[level]), size) for level, lateral in self.laterals.items()]
        output: Tensor = self.out(torch.relu(reduce(torch.add, scales)))
        return output
