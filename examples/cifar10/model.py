"""A small convolutional network: one trunk, a linear head for each task."""

from collections.abc import Mapping

from harness.model import MultiTaskModel
from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Trunk(nn.Module):
    """Image [B, 3, 32, 32] in 0..1 -> the shared representation [B, width], where task gradients meet.

    Convolutions at strides 1, 2 and 4, then the mean over places.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter, half = max(1, width // 4), max(1, width // 2)
        self.layers = nn.Sequential(
            *_block(3, quarter), nn.MaxPool2d(2),
            *_block(quarter, half), *_block(half, half), nn.MaxPool2d(2),
            *_block(half, width), *_block(width, width),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.layers(2 * image - 1)
        return features


class SmallNet(MultiTaskModel):
    """The trunk, and for each task of `classes` (task -> number of classes) logits [B, classes].

    Args:
        classes: the tasks.
        width: length of the representation.
    """

    def __init__(self, classes: Mapping[str, int], *, width: int) -> None:
        super().__init__(Trunk(width), {task: nn.Linear(width, count) for task, count in classes.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's logits."""
        features = self.trunk(image)
        return {task: head(features) for task, head in self.heads.items()}
