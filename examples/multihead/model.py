"""A Vision Transformer trunk, whose class token is where the tasks' gradients meet, and one small head a task."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from harness.errors import RunError
from harness.model import MultiTaskModel
from torch import Tensor, nn
from torchvision.models import VisionTransformer, ViT_B_16_Weights  # type: ignore[import-untyped]
from torchvision.models.vision_transformer import ConvStemConfig, interpolate_embeddings  # type: ignore[import-untyped]

from multihead.targets import Target, Targets, targets_from_state, targets_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEMS = ("convolutions", "patch")
BACKBONES = ("small", "vit_b_16")


@dataclass(frozen=True)
class Shape:
    """What builds a trunk.

    Attributes:
        size: the image's side in pixels, a multiple of `patch`.
        patch: pixels a token and direction.
        width: of tokens and representation, a multiple of `attention_heads`.
        depth: transformer blocks.
        attention_heads: in each block.
        stem: "patch", one linear map a patch; or "convolutions", 3x3 and stride 2 until a pixel is a token (Xiao et al., Early
            Convolutions Help Transformers See Better, NeurIPS 2021), which learns from far fewer images.

    Raises RunError where they do not fit together.
    """

    size: int
    patch: int
    width: int
    depth: int
    attention_heads: int
    stem: str

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise RunError(
                f"--size {self.size}: expected a multiple of --patch {self.patch}; "
                f"try {max(1, self.size // self.patch) * self.patch}."
            )
        if self.width % self.attention_heads:
            raise RunError(f"--width {self.width}: expected a multiple of --attention-heads {self.attention_heads}.")
        if self.stem == "convolutions" and self.patch not in (2, 4, 8, 16, 32):
            raise RunError(
                f"--patch {self.patch}: --stem convolutions halves the image again and again; expected 2, 4, 8, 16 or 32."
            )

    def stem_layers(self) -> list[Any] | None:
        """3x3 convolutions of stride 2, each twice as wide as the one before it up to half the trunk's width, none below 8."""
        if self.stem == "patch":
            return None
        halvings = self.patch.bit_length() - 1
        return [ConvStemConfig(max(8, self.width >> (halvings - index)), 3, 2) for index in range(halvings)]


# The shape of --backbone vit_b_16.
VIT_B_16: dict[str, Any] = {"patch": 16, "width": 768, "depth": 12, "attention_heads": 12, "stem": "patch"}


class Trunk(nn.Module):
    """Image [B, 3, size, size] in 0..1 -> the class token after the last block, [B, width], where task gradients meet."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.transformer = VisionTransformer(
            shape.size, shape.patch, shape.depth, shape.attention_heads, shape.width, 4 * shape.width, dropout=dropout,
            conv_stem_configs=shape.stem_layers(),
        )  # fmt: skip
        self.transformer.heads = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        token: Tensor = self.transformer((image - self.mean) / self.std)
        return token

    def load_imagenet(self, shape: Shape) -> None:
        """ViT-B/16's ImageNet weights, their position embeddings interpolated where `shape.size` is not 224.

        Raises RunError when they are neither whole in torch's cache nor to be downloaded.
        """
        weights = ViT_B_16_Weights.IMAGENET1K_V1
        try:
            # A file in the cache is not hashed again, so nothing in it may run.
            state: Any = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # OSError: no network; the others: a damaged file
            raise RunError(
                f"--pretrained: could not get {weights.url} ({str(error).splitlines()[0]}); put a good copy into "
                f"{torch.hub.get_dir()}/checkpoints, or train from random weights without --pretrained."
            ) from error
        state = OrderedDict((name, value) for name, value in state.items() if not name.startswith("heads."))
        self.transformer.load_state_dict(interpolate_embeddings(shape.size, shape.patch, state))


class Head(nn.Sequential):
    """Class token [B, width] -> one task's output [B, outputs]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


class ProductModel(MultiTaskModel):
    """Trunk and heads, and with them in every checkpoint what their outputs mean: shape, vocabularies, normalisation."""

    trunk: Trunk

    def __init__(self, shape: Shape, targets: Targets, *, dropout: float = 0.0) -> None:
        heads = {task: Head(shape.width, target.outputs) for task, target in targets.items()}
        super().__init__(Trunk(shape, dropout=dropout), heads)
        self.shape = shape
        self.targets: dict[str, Target] = dict(targets)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, size, size] in 0..1 -> every task's output [B, outputs]."""
        token = self.trunk(image)
        return {task: head(token) for task, head in self.heads.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's answer: class probabilities [B, classes], or the number in the label's unit [B]."""
        return {task: self.targets[task].predict(output) for task, output in self(image).items()}

    def get_extra_state(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape), "targets": targets_state(self.targets)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["targets"] != self.get_extra_state()["targets"]:
            raise ValueError("the vocabularies or the normalisation are others: the training data has changed")


def model_from_state(state: dict[str, Any]) -> ProductModel:
    """The model that a state dict of a `ProductModel` describes, with its weights, ready to predict."""
    extra = state["_extra_state"]
    model = ProductModel(Shape(**extra["shape"]), targets_from_state(extra["targets"]))
    model.load_state_dict(state)
    return model.eval()
