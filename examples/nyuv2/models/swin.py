"""Swin Transformer as an encoder."""

from torch import Tensor, nn
from torchvision.models import SwinTransformer  # type: ignore[import-untyped]
from torchvision.ops import Permute  # type: ignore[import-untyped]

from nyuv2.models.encoder import Encoder
from nyuv2.models.resize import resize


class SwinEncoder(Encoder):
    """Swin (Liu et al., ICCV 2021): four stages of shifted-window attention, each map layer-normalized as in their dense tasks.

    Stages keep channels last; windows and merged patches that do not fill a map are padded within torchvision. An image that
    is no whole number of 4x4 patches is resized to the next one, so that a map always covers exactly the image.
    """

    PATCH = 4

    def __init__(self, network: SwinTransformer) -> None:
        # Of the eight features, the even ones make or merge patches and the odd ones are blocks.
        stages = [network.features[at : at + 2] for at in range(0, 8, 2)]
        width = network.features[0][0].out_channels
        channels = [width * 2**stage for stage in range(4)]
        super().__init__(stages, channels, strides=(4, 8, 16, 32))
        self.norms = nn.ModuleList(nn.Sequential(nn.LayerNorm(count), Permute([0, 3, 1, 2])) for count in channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = super().forward(resize(image, whole_patches(image, self.PATCH)))
        return [norm(features) for norm, features in zip(self.norms, maps, strict=True)]


def whole_patches(image: Tensor, patch: int) -> tuple[int, int]:
    """The image's height and width, each rounded up to a multiple of `patch`."""
    height, width = image.shape[-2:]
    return -(-height // patch) * patch, -(-width // patch) * patch
