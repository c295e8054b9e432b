"""Generated products: solids of revolution seen from the side; a pure function of (seed, split, index).

The surface's colour and pattern tell the company, the outline tells the model, width and height are diameter and length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multihead.data.labels import TASKS, Labels

Split = Literal["train", "val"]
Array = npt.NDArray[np.float64]

FRAME = 200.0  # mm that the picture's side spans
DIAMETERS, LENGTHS = (24.0, 80.0), (60.0, 150.0)  # mm
MISSING = 0.06  # share of labels that are not known, in each task
_STREAM = {"train": 0, "val": 1}
_FINE = 2  # samples a pixel and direction

# Radius as a share of the largest, from top to bottom: positions, radii.
OUTLINES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "barrel": ((0, 0.25, 0.5, 0.75, 1), (0.65, 0.92, 1, 0.92, 0.65)),
    "bottle": ((0, 0.3, 0.45, 1), (0.35, 0.35, 1, 1)),
    "bullet": ((0, 0.1, 0.25, 0.45, 1), (0.1, 0.55, 0.85, 1, 1)),
    "can": ((0, 1), (1, 1)),
    "cone": ((0, 1), (0.15, 1)),
    "hourglass": ((0, 0.5, 1), (1, 0.35, 1)),
    "spindle": ((0, 0.5, 1), (0.12, 1, 0.12)),
    "spool": ((0, 0.2, 0.201, 0.8, 0.801, 1), (1, 1, 0.5, 0.5, 1, 1)),
}
# Where the second colour shows: angle around the axis in turns, height in mm -> truth.
PATTERNS: dict[str, Callable[[Array, Array], npt.NDArray[np.bool_]]] = {
    "plain": lambda turn, height: np.zeros_like(turn, bool),
    "rings": lambda turn, height: height % 16 < 6,
    "stripes": lambda turn, height: turn * 12 % 1 < 0.4,
    "spirals": lambda turn, height: (turn * 6 + height / 24) % 1 < 0.4,
    "checks": lambda turn, height: (turn * 8 % 1 < 0.5) ^ (height % 24 < 12),
}
# Colours and pattern; neither alone tells all companies apart.
COMPANIES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], str]] = {
    "Alder": ((0.75, 0.16, 0.14), (0.95, 0.9, 0.85), "rings"),
    "Birch": ((0.75, 0.16, 0.14), (0.95, 0.9, 0.85), "stripes"),
    "Cedar": ((0.13, 0.3, 0.66), (0.95, 0.85, 0.3), "rings"),
    "Elm": ((0.13, 0.3, 0.66), (0.95, 0.85, 0.3), "checks"),
    "Hazel": ((0.15, 0.5, 0.25), (0.1, 0.12, 0.12), "spirals"),
    "Maple": ((0.6, 0.58, 0.52), (0.1, 0.12, 0.12), "plain"),
}


@dataclass(frozen=True)
class Product:
    """One product, where it stands (mm from the middle, degrees from upright), and the light of its picture."""

    company: str
    model: str
    diameter: float  # mm, to 0.1
    length: float
    across: float
    down: float
    tilt: float
    turn: float  # around its axis, in turns
    light: float
    backdrop: tuple[float, float, float]
    known: dict[str, bool]
    noise: int  # seed of the camera's

    @property
    def labels(self) -> Labels:
        return {task: getattr(self, task) if self.known[task] else None for task in TASKS}


class GeneratedProducts:
    """`count` products of one split."""

    name = "generated products"
    unit = " mm"

    def __init__(self, *, split: Split, seed: int, count: int) -> None:
        self.where = f"generated products of {split}, seed {seed}"
        self._products = [plan(seed, split, index) for index in range(count)]
        self.labels = tuple(product.labels for product in self._products)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, size: int) -> Tensor:
        return draw(self._products[index], size)


def plan(seed: int, split: Split, index: int) -> Product:
    """Product `index` of a split."""
    rng = np.random.default_rng([seed, _STREAM[split], index])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    return Product(
        company=sorted(COMPANIES)[rng.integers(len(COMPANIES))],
        model=sorted(OUTLINES)[rng.integers(len(OUTLINES))],
        diameter=round(between(*DIAMETERS), 1), length=round(between(*LENGTHS), 1),
        across=between(-12, 12), down=between(-10, 10), tilt=between(-10, 10), turn=between(0, 1), light=between(-0.6, 0.6),
        backdrop=(between(0.55, 0.9), between(0.55, 0.9), between(0.55, 0.9)),
        known={task: bool(rng.random() >= MISSING) for task in TASKS},
        noise=int(rng.integers(2**32)),
    )  # fmt: skip


def draw(product: Product, size: int) -> Tensor:
    """The product's picture, uint8 [3, size, size]; only its sharpness depends on the size."""
    fine = size * _FINE
    grid = ((np.arange(fine) + 0.5) / fine - 0.5) * FRAME  # mm
    x, y = grid[None, :] - product.across, grid[:, None] - product.down
    tilt = math.radians(product.tilt)
    u, v = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)  # across, along the axis
    along = v / product.length + 0.5
    radius = np.interp(along, *OUTLINES[product.model], left=0.0, right=0.0) * product.diameter / 2
    inside = np.abs(u) < radius
    side = np.divide(u, radius, out=np.zeros_like(u), where=inside)  # -1..1 from one rim to the other
    angle = np.arcsin(side)
    base, second, pattern = COMPANIES[product.company]
    marked = PATTERNS[pattern](angle / (2 * math.pi) + product.turn, v + product.length / 2)
    shade = 0.35 + 0.65 * np.cos(angle - product.light).clip(0)
    surface = np.where(marked[..., None], np.array(second), np.array(base)) * shade[..., None]
    floor = np.array(product.backdrop) * (1 - 0.15 * (grid[:, None, None] / FRAME + 0.5))
    image: Any = np.where(inside[..., None], surface, floor)  # [fine, fine, 3]
    image = image.reshape(size, _FINE, size, _FINE, 3).mean((1, 3))
    image = image + np.random.default_rng(product.noise).normal(0, 0.02, image.shape)
    return torch.from_numpy((image.clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1).copy())
