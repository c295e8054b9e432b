"""The one way in which maps change their size here."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of [B, C, h, w] to [B, C, *size]; under --deterministic, reproducible on CUDA too (bicubic is not)."""
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
