"""HydraNet: one MobileNetV2 + Light-Weight RefineNet trunk, one small head for each dense task."""

from collections.abc import Sequence
from functools import reduce
from typing import cast
from urllib.error import URLError

import torch
import torch.nn.functional as F
from harness.errors import RunError
from harness.model import MultiTaskModel
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2  # type: ignore[import-untyped]

# The MobileNetV2 stages whose last block the decoder reads: torchvision's index after which to read, channels, stride.
STAGES = ((3, 24, 4), (6, 32, 8), (10, 64, 16), (13, 96, 16), (16, 160, 32), (17, 320, 32))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """MobileNetV2 (Sandler et al. 2018) without its classifier: [B, 3, H, W] -> six feature maps, finest first.

    Raises RunError when `pretrained` weights are neither in torch's cache nor to be downloaded.
    """

    def __init__(self, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            network = mobilenet_v2(weights=MobileNet_V2_Weights.IMAGENET1K_V2 if pretrained else None)
        except (URLError, OSError) as error:
            raise RunError(
                f"--pretrained: could not download {MobileNet_V2_Weights.IMAGENET1K_V2.url} ({error}); put the file into "
                f"{torch.hub.get_dir()}/checkpoints, or train from random weights without --pretrained."
            ) from error
        self.blocks = network.features[:18]  # 18 is the 1x1 convolution to 1280 channels, for classification only

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, features = [], image
        ends = [end for end, _, _ in STAGES]
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in ends:
                maps.append(features)
        return maps


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


class Decoder(nn.Module):
    """Light-Weight RefineNet (Nekrasov, Shen & Reid, BMVC 2018): six feature maps -> [B, channels, H/4, W/4].

    Every map is reduced by a 1x1 convolution; from coarse to fine, maps of one stride are summed, refined by chained residual
    pooling, adapted by a 1x1 convolution, resized to the next finer map and added to it. As there, no normalization layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strides = sorted({stride for _, _, stride in STAGES}, reverse=True)
        self.reductions = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for _, width, _ in STAGES)
        self.pooling = nn.ModuleList(ChainedResidualPooling(channels) for _ in self.strides)
        self.adapters = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in self.strides[1:])

    def forward(self, maps: list[Tensor]) -> Tensor:
        reduced = [convolution(features) for convolution, features in zip(self.reductions, maps, strict=True)]
        fused = torch.empty(0)
        for level, stride in enumerate(self.strides):
            same = [features for features, (_, _, at) in zip(reduced, STAGES, strict=True) if at == stride]
            if level > 0:
                same.append(_resize(self.adapters[level - 1](fused), same[0].shape[-2:]))
            fused = self.pooling[level](reduce(torch.add, same))
        return fused


class Trunk(nn.Module):
    """Image [B, 3, H, W] in 0..1 -> the shared representation [B, channels, H/4, W/4], where task gradients meet."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.encoder = Encoder(pretrained=pretrained)
        self.decoder = Decoder(channels)
        self.frozen = False

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.decoder(self.encoder((image - self.mean) / self.std))
        return features

    def freeze_encoder(self, frozen: bool) -> None:
        """Stop (or resume) training the encoder: no gradients, and batch normalization by its running statistics."""
        self.frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


class Head(nn.Module):
    """Representation [B, channels, h, w] -> one task's map [B, outputs, H, W]: depthwise, pointwise, 3x3 convolution, resize."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
        )
        self.out = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        return self.activate(_resize(self.out(self.mix(features)), size))

    def activate(self, output: Tensor) -> Tensor:
        """Segmentation: the output is logits already."""
        return output


class DepthHead(Head):
    """[B, 1, H, W] metres, positive by softplus; starts near 2.5 m, an ordinary distance indoors, and not at 0.7 m."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs)
        nn.init.constant_(cast(Tensor, self.out.bias), 2.4)

    def activate(self, output: Tensor) -> Tensor:
        return F.softplus(output.float())


class NormalHead(Head):
    """[B, 3, H, W] unit vectors."""

    def activate(self, output: Tensor) -> Tensor:
        return F.normalize(output.float(), dim=1)


class HydraNet(MultiTaskModel):
    """A trunk and a head for each of `tasks` ⊆ ("segmentation", "depth", "normal").

    Args:
        tasks: which heads to build.
        classes: number of segmentation classes.
        channels: width of the representation; the paper has 256.
        pretrained: start the encoder from torchvision's ImageNet weights.
    """

    def __init__(self, tasks: Sequence[str], *, classes: int, channels: int = 256, pretrained: bool = False) -> None:
        build = {
            "segmentation": lambda: Head(channels, classes),
            "depth": lambda: DepthHead(channels, 1),
            "normal": lambda: NormalHead(channels, 3),
        }
        if unknown := sorted(set(tasks) - set(build)):
            raise ValueError(f"tasks: expected some of {sorted(build)}, found {unknown}")
        super().__init__(Trunk(channels, pretrained=pretrained), {task: build[task]() for task in tasks})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's prediction at the image's size."""
        features = self.trunk(image)
        return {task: head(features, image.shape[-2:]) for task, head in self.heads.items()}
