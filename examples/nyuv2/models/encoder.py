"""What all encoders are: stages of an image classifier, one after the other, and a feature map from each."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet  # type: ignore[import-untyped]


class Encoder(nn.Module):
    """Image [B, 3, H, W], H and W ≥ 32 and not always multiples of anything -> [B, channels[i], ~H/strides[i], ~W/strides[i]].

    Args:
        stages: the classifier's layers in groups, in order; the unit of freezing.
        channels, strides: of the map after each stage, finest first.
    """

    def __init__(self, stages: Iterable[nn.Module], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels, self.strides = tuple(channels), tuple(strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, features = [], image
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


def mobilenetv2_encoder(network: MobileNetV2) -> Encoder:
    """MobileNetV2 (Sandler et al., CVPR 2018): six stages, the last block of each of which Light-Weight RefineNet reads."""
    ends = (3, 6, 10, 13, 16, 17)  # 18 is the 1x1 convolution to 1280 channels, for classification only
    stages = [network.features[start + 1 : end + 1] for start, end in zip((-1, *ends), ends, strict=False)]
    return Encoder(stages, channels=(24, 32, 64, 96, 160, 320), strides=(4, 8, 16, 16, 32, 32))


def resnet_encoder(network: ResNet) -> Encoder:
    """ResNet with bottlenecks (He et al., CVPR 2016): four stages, the stem being part of the first."""
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
    stages = (stem, network.layer2, network.layer3, network.layer4)
    return Encoder(stages, channels=(256, 512, 1024, 2048), strides=(4, 8, 16, 32))
