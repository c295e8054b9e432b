"""Pictures like CIFAR-10's, drawn: one of ten things in a random pose and colors before a scene where it is often found."""

from __future__ import annotations

import colorsys
from typing import Literal

import numpy as np

from cifar10.data.images import CLASSES, SIZE, Images, Pixels
from cifar10.data.shapes import DRAWINGS, Floats, coverage

GENERATED = "generated"
_SPLITS = {"train": 0, "val": 1}
# Ranges of hue, saturation and value above and below the horizon, then the class's own scene, taken at HOME's rate.
_SKY = ((0.52, 0.62), (0.1, 0.6), (0.6, 1.0))
_GROUND = {
    "air": _SKY,
    "road": ((0.0, 1.0), (0.0, 0.1), (0.25, 0.6)),
    "sea": ((0.5, 0.65), (0.4, 0.8), (0.25, 0.7)),
    "grass": ((0.2, 0.4), (0.3, 0.8), (0.25, 0.7)),
    "indoors": ((0.0, 0.15), (0.1, 0.5), (0.3, 0.9)),
}
_HOMES = ("air", "road", "air", "indoors", "grass", "indoors", "grass", "grass", "sea", "road")
_HOME_RATE = 0.6
_PAINT = ((0.0, 1.0), (0.0, 0.9), (0.3, 1.0))
_FUR = ((0.02, 0.12), (0.1, 0.7), (0.2, 0.9))
_COATS = {"frog": ((0.15, 0.4), (0.3, 0.9), (0.3, 0.8)), "bird": _PAINT}
_ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}
_NOISE = 0.06

_Range = tuple[float, float]
_Colors = tuple[_Range, _Range, _Range]


def draw_images(split: Literal["train", "val"], *, count: int, seed: int) -> Images:
    """`count` pictures, classes in turn; picture and class are functions of (seed, split, index)."""
    pixels = np.stack([_picture(seed, _SPLITS[split], index) for index in range(count)])
    return Images("drawings of the CIFAR-10 classes", pixels, np.arange(count, dtype=np.int64) % len(CLASSES))


def _picture(seed: int, split: int, index: int) -> Pixels:
    """[3, 32, 32]"""
    rng = np.random.default_rng((seed, split, index))
    kind = index % len(CLASSES)
    across, down = np.meshgrid(*(2 * [(np.arange(SIZE) + 0.5) * 2 / SIZE - 1]))  # [H, W] in -1..1
    image = _scene(rng, kind, down)
    scale, turn = rng.uniform(0.6, 1.0), rng.uniform(-0.25, 0.25)
    x, y = across - rng.uniform(-0.3, 0.3), down - rng.uniform(-0.3, 0.3)
    x, y = (np.cos(turn) * x + np.sin(turn) * y) / scale, (np.cos(turn) * y - np.sin(turn) * x) / scale
    if rng.random() < 0.5:
        x = -x
    colors = _colors(rng, CLASSES[kind])
    parts = DRAWINGS[kind]
    for part, cover in zip(parts, coverage(parts, x, y, 2 / SIZE / scale), strict=True):
        image += cover * (colors[part.color][:, None, None] - image)
    image = image * rng.uniform(0.6, 1.15) + rng.normal(0, _NOISE, image.shape)
    pixels: Pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _scene(rng: np.random.Generator, kind: int, down: Floats) -> Floats:
    """What stands behind: two colors that meet at a horizon. [3, H, W] in 0..1"""
    home = _HOMES[kind] if rng.random() < _HOME_RATE else tuple(_GROUND)[rng.integers(len(_GROUND))]
    above, below = _color(rng, _SKY if home != "indoors" else _GROUND[home]), _color(rng, _GROUND[home])
    share = ((down - rng.uniform(-0.5, 0.5)) / 0.2 + 0.5).clip(0, 1)
    blend: Floats = above[:, None, None] * (1 - share) + below[:, None, None] * share
    return blend


def _colors(rng: np.random.Generator, kind: str) -> tuple[Floats, ...]:
    """Body, second, dark, glass, light."""
    coat = _COATS.get(kind, _FUR if kind in _ANIMALS else _PAINT)
    body = _color(rng, coat)
    second = (body * rng.uniform(0.5, 1.4)).clip(0, 1)
    return body, second, np.full(3, rng.uniform(0.0, 0.2)), np.array([0.6, 0.75, 0.85]), np.full(3, rng.uniform(0.8, 1.0))


def _color(rng: np.random.Generator, ranges: _Colors) -> Floats:
    """A random color as RGB in 0..1. [3]"""
    return np.array(colorsys.hsv_to_rgb(*(rng.uniform(*limits) for limits in ranges)))
