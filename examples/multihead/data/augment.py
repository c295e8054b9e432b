"""Views of a picture: moved, turned a little and relit, but never zoomed or mirrored, for size and outline are the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

_SHIFT = 0.08  # of the image's side
_TURN = 8.0  # degrees


@dataclass(frozen=True)
class View:
    """How a picture is shown; by default as it is. Shifts are shares of its side, `turn` is in degrees."""

    across: float = 0.0
    down: float = 0.0
    turn: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0


def draw_view(seed: int, epoch: int, index: int) -> View:
    """The random view of picture `index` in `epoch`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, epoch, index])
    across, down = (float(shift) for shift in rng.uniform(-_SHIFT, _SHIFT, 2))
    brightness, contrast = (float(factor) for factor in rng.uniform(0.85, 1.15, 2))
    return View(across, down, float(rng.uniform(-_TURN, _TURN)), brightness, contrast)


def show(image: Tensor, view: View) -> Tensor:
    """uint8 [3, S, S] under a view; what comes in from outside repeats the edge."""
    if view == View():
        return image
    side = image.shape[-1]
    margin = side // 4  # more than a turn by _TURN and a shift by _SHIFT bring in
    wide = F.pad(image, [margin] * 4, padding_mode="edge")
    wide = F.affine(
        wide, angle=view.turn, translate=[view.across * side, view.down * side], scale=1.0, shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    shown: Tensor = F.center_crop(wide, [side, side])
    relit: Tensor = F.adjust_contrast(F.adjust_brightness(shown, view.brightness), view.contrast)
    return relit
