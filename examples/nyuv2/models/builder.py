"""From the names of the command line to a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
from harness.errors import RunError
from harness.model import MultiTaskModel
from torch import Tensor
from torchvision import models as vision  # type: ignore[import-untyped]

from nyuv2.models.encoder import Encoder, mobilenetv2_encoder, resnet_encoder
from nyuv2.models.heads import START, Head
from nyuv2.models.mtan import AttentionHead, SegNetDecoder, SegNetEncoder
from nyuv2.models.pyramid import Pyramid, PyramidHead
from nyuv2.models.queries import QueryHead
from nyuv2.models.refinenet import MapHead, RefineNet
from nyuv2.models.swin import SwinEncoder
from nyuv2.models.trunk import Trunk
from nyuv2.models.vit import ViTEncoder


@dataclass(frozen=True)
class Backbone:
    """A classifier of torchvision, its ImageNet weights, what makes an encoder of it, and the decoder that usually follows."""

    network: Callable[..., Any]
    weights: Any
    encoder: Callable[[Any], Encoder]
    decoder: str


@dataclass(frozen=True)
class Decoder:
    """The shared part after the encoder, what each task has after that, and the usual width."""

    shared: Callable[[Encoder, int], Any]
    head: Callable[[str, int, Any], Head]
    channels: int


BACKBONES = {
    "mobilenetv2": Backbone(vision.mobilenet_v2, vision.MobileNet_V2_Weights.IMAGENET1K_V2, mobilenetv2_encoder, "refinenet"),
    "resnet50": Backbone(vision.resnet50, vision.ResNet50_Weights.IMAGENET1K_V2, resnet_encoder, "fpn"),
    "swin_t": Backbone(vision.swin_t, vision.Swin_T_Weights.IMAGENET1K_V1, SwinEncoder, "fpn"),
    "vit_b_16": Backbone(vision.vit_b_16, vision.ViT_B_16_Weights.IMAGENET1K_V1, ViTEncoder, "fpn"),
}
SEGNET = "segnet"  # no classifier of torchvision: it has no weights, and MTAN is the only decoder that its maps are for
DECODERS = {
    "refinenet": Decoder(RefineNet, MapHead, 128),
    "fpn": Decoder(Pyramid, PyramidHead, 128),
    "queries": Decoder(Pyramid, QueryHead, 128),
    "mtan": Decoder(lambda encoder, _: SegNetDecoder(encoder), AttentionHead, 64),
}


class DenseModel(MultiTaskModel):
    """A trunk, and a head for each task that turns its representation into a map of the image's size."""

    trunk: Trunk

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's prediction at the image's size."""
        features = self.trunk(image)
        return {task: head(features, image.shape[-2:]) for task, head in self.heads.items()}


def build_model(
    tasks: Sequence[str], *, classes: int, typical_depth: float = START, backbone: str = "mobilenetv2", decoder: str | None = None,
    channels: int | None = None, pretrained: bool = False, freeze_stages: int = 0,
) -> DenseModel:  # fmt: skip
    """A model for `tasks` ⊆ ("segmentation", "depth", "normal", "instance").

    Args:
        tasks: which heads to build.
        classes: number of segmentation classes.
        typical_depth: where the predicted depth starts, in the data's unit.
        backbone: one of BACKBONES, or "segnet".
        decoder: one of DECODERS; None: the backbone's usual one.
        channels: width of the representation (mtan: of its finest level, and of the encoder's); None: the decoder's usual one.
        pretrained: start the backbone from torchvision's ImageNet weights.
        freeze_stages: how many of the encoder's first stages never train.

    Raises:
        RunError: the choices do not fit each other, or weights are neither in torch's cache nor to be downloaded.
    """
    decoder = decoder or ("mtan" if backbone == SEGNET else BACKBONES[backbone].decoder)
    if (backbone == SEGNET) != (decoder == "mtan"):
        raise RunError(f"--backbone {backbone} --decoder {decoder}: segnet and mtan go together, and with nothing else.")
    parts = DECODERS[decoder]
    channels = channels or parts.channels
    encoder = _segnet(channels, pretrained) if backbone == SEGNET else _encoder(BACKBONES[backbone], pretrained)
    if freeze_stages > len(encoder.stages):
        raise RunError(f"--freeze-stages {freeze_stages}: {backbone} has {len(encoder.stages)} stages.")
    shared = parts.shared(encoder, channels)
    trunk = Trunk(encoder, shared)
    trunk.freeze(freeze_stages)
    heads = {task: parts.head(task, classes, shared) for task in tasks}
    for head in heads.values():
        head.depth_scale = typical_depth / START
    return DenseModel(trunk, heads)


def _segnet(width: int, pretrained: bool) -> Encoder:
    if pretrained:
        raise RunError("--pretrained: there are no weights for --backbone segnet; leave it out, or take another backbone.")
    return SegNetEncoder(width)


def _encoder(backbone: Backbone, pretrained: bool) -> Encoder:
    try:
        return backbone.encoder(backbone.network(weights=backbone.weights if pretrained else None))
    except (URLError, OSError) as error:
        raise RunError(
            f"--pretrained: could not download {backbone.weights.url} ({error}); put the file into "
            f"{torch.hub.get_dir()}/checkpoints, or train from random weights without --pretrained."
        ) from error
