"""What every head ends with: the size of the image, and values that its task can have."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from harness.precision import at_least_float32
from torch import Tensor, nn

from nyuv2.models.resize import resize

START = 2.5  # m, an ordinary distance indoors


class Head(nn.Module):
    """features, (H, W) -> a task's prediction at the image's size; subclasses say what they compute before: `raw`.

    segmentation: logits [B, classes, H, W]; depth: [B, 1, H, W], positive by softplus, times `depth_scale`; normal: unit vectors
    [B, 3, H, W]; instance: offsets [B, 2, H, W] in pixels.
    """

    depth_scale: float = 1.0

    def __init__(self, task: str, classes: int) -> None:
        super().__init__()
        outputs = {"segmentation": classes, "depth": 1, "normal": 3, "instance": 2}
        if task not in outputs:
            raise ValueError(f"task: expected one of {', '.join(outputs)}, found {task!r}")
        self.task, self.outputs = task, outputs[task]

    def start(self, last: nn.Conv2d | nn.Linear) -> None:
        """Let depth begin near START times `depth_scale`, and not at 0.7 times it: by the bias of the last layer."""
        if self.task == "depth" and last.bias is not None:
            nn.init.constant_(last.bias, math.log(math.expm1(START)))

    def raw(self, features: Any) -> Tensor:
        """The representation -> [B, outputs, h, w], at any resolution."""
        raise NotImplementedError

    def forward(self, features: Any, size: Sequence[int]) -> Tensor:
        output = resize(self.raw(features), size)
        if self.task == "depth":
            return F.softplus(at_least_float32(output)) * self.depth_scale
        if self.task == "normal":
            return F.normalize(at_least_float32(output), dim=1)
        return output
