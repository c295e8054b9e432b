"""Views of a sample: crop, zoom, flip and color, with depth, normals and offsets that stay right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from nyuv2.data.sample import Sample, positions

_LARGEST_ZOOM = 1.5


@dataclass(frozen=True)
class View:
    """How a sample is shown; by default as it is.

    `zoom` (at least 1) into a window that lies at `across` and `down` of its free play (0..1), `mirrored`
    or not, with factors on brightness, contrast and saturation and a shift of the hue in turns.
    """

    zoom: float = 1.0
    across: float = 0.5
    down: float = 0.5
    mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def draw_view(seed: int, epoch: int, index: int) -> View:
    """The random view of sample `index` in `epoch`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, epoch, index])
    zoom, across, down = float(rng.uniform(1, _LARGEST_ZOOM)), float(rng.random()), float(rng.random())
    mirrored = bool(rng.random() < 0.5)
    brightness, contrast, saturation = (float(f) for f in rng.uniform(0.8, 1.2, 3))
    return View(zoom, across, down, mirrored, brightness, contrast, saturation, float(rng.uniform(-0.03, 0.03)))


def show(sample: Sample, view: View, size: tuple[int, int], *, inverse: bool = False) -> Sample:
    """The sample under a view, at `size` (height, width), in memory of its own.

    The image is resampled bilinearly with antialiasing; class ids, depth and normals take the nearest
    pixel, so no value is ever mixed across an edge or with IGNORE. Zooming by s looks like a camera s times
    nearer: depth is divided by s, or multiplied where it is `inverse`. The normals' matching change (their z
    times s, then unit length again) is left out, as all published NYUv2 multi-task pipelines do; they keep
    unit length. Mirroring negates the normals' x. Offsets lead from the pixel as shown to where the view
    puts its instance's center (which may be outside): they grow with the picture, and mirroring negates
    their x.
    """
    height, width = sample["image"].shape[-2:]
    rows, columns = max(1, round(height / view.zoom)), max(1, round(width / view.zoom))
    top, left = round((height - rows) * view.down), round((width - columns) * view.across)
    zoom = math.sqrt(height * width / (rows * columns))  # of the window in whole pixels

    def window(tensor: torch.Tensor, mode: InterpolationMode) -> torch.Tensor:  # [..., H, W] -> [..., *size]
        crop: torch.Tensor = F.crop(tensor, top, left, rows, columns)
        crop = F.resize(crop, list(size), interpolation=mode, antialias=mode is InterpolationMode.BILINEAR)
        if view.mirrored:
            crop = F.horizontal_flip(crop)
        return crop

    shown = {"image": _recolored(window(sample["image"], InterpolationMode.BILINEAR), view)}
    shown["segmentation"] = window(sample["segmentation"][None], InterpolationMode.NEAREST_EXACT)[0]
    if "depth" in sample:
        depth = window(sample["depth"], InterpolationMode.NEAREST_EXACT)
        shown["depth"] = depth * zoom if inverse else depth / zoom
    if "normal" in sample:
        normal = window(sample["normal"], InterpolationMode.NEAREST_EXACT)
        shown["normal"] = normal * normal.new_tensor([-1.0, 1.0, 1.0])[:, None, None] if view.mirrored else normal
    if "instance" in sample:  # through the centers' positions, or the pixels' rounding would stay in the offsets
        center = window(sample["instance"] + positions(height, width), InterpolationMode.NEAREST_EXACT)
        corner, step = center.new_tensor([top, left]), center.new_tensor([size[0] / rows, size[1] / columns])
        center = (center - corner[:, None, None]) * step[:, None, None]
        if view.mirrored:
            center[1] = size[1] - center[1]
        shown["instance"] = (center - positions(*size)).float()
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in shown.items()}


def _recolored(image: torch.Tensor, view: View) -> torch.Tensor:
    if view.brightness != 1:
        image = F.adjust_brightness(image, view.brightness)
    if view.contrast != 1:
        image = F.adjust_contrast(image, view.contrast)
    if view.saturation != 1:
        image = F.adjust_saturation(image, view.saturation)
    if view.hue != 0:
        image = F.adjust_hue(image, view.hue)
    return image.clamp(0, 1)
