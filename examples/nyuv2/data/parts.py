"""What furniture is made of: solids with a class and a material, gathered into pieces that can be moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nyuv2.data.raycast import BOX, CYLINDER, Floats, Solids
from nyuv2.data.sample import CLASSES_13
from nyuv2.data.textures import Color, Material, Pattern

(
    BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW,
) = range(len(CLASSES_13))  # fmt: skip

CLOTH = (Pattern.PLAIN, Pattern.BLOTCHES, Pattern.STRIPES, Pattern.CHECKS, Pattern.DOTS)
BOARD = (Pattern.PLAIN, Pattern.WOOD, Pattern.WOOD, Pattern.BLOTCHES)

Point = tuple[float, float, float]
Area = tuple[float, float, float, float]
"""A range of x and z: left, right, back, front."""


class Part(NamedTuple):
    """One solid: class, center and half extents in metres; turned by pitch about x, then by yaw about y."""

    label: int
    center: Point
    half: Point
    material: Material
    shape: int = BOX
    yaw: float = 0.0
    pitch: float = 0.0


def placed(point: Point, origin: tuple[float, float], yaw: float) -> Point:
    """A point of a frame that stands at `origin` (x, z), turned by `yaw`, in the outer frame."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    x, y, z = point
    return origin[0] + cosine * x + sine * z, y, origin[1] - sine * x + cosine * z


def moved(parts: Sequence[Part], origin: tuple[float, float], yaw: float) -> list[Part]:
    """The parts of a piece whose frame stands at `origin` (x, z), turned by `yaw`, in the outer frame."""
    return [p._replace(center=placed(p.center, origin, yaw), yaw=p.yaw + yaw) for p in parts]


def footprint(parts: Sequence[Part]) -> Area:
    """The floor that upright parts cover."""
    spans = []
    for p in parts:
        cosine, sine = abs(math.cos(p.yaw)), abs(math.sin(p.yaw))
        spans.append((p.center, cosine * p.half[0] + sine * p.half[2], sine * p.half[0] + cosine * p.half[2]))
    return (
        min(center[0] - x for center, x, _ in spans),
        max(center[0] + x for center, x, _ in spans),
        min(center[2] - z for center, _, z in spans),
        max(center[2] + z for center, _, z in spans),
    )


def solids_of(parts: Sequence[Part]) -> Solids:
    """The parts as arrays for the ray caster."""
    yaw, pitch = np.array([(p.yaw, p.pitch) for p in parts]).T
    return Solids(
        shape=np.array([p.shape for p in parts], np.int64),
        center=np.array([p.center for p in parts], np.float32),
        half=np.array([p.half for p in parts], np.float32),
        rotation=_rotations(yaw, pitch),
    )


def _rotations(yaw: npt.NDArray[np.float64], pitch: npt.NDArray[np.float64]) -> Floats:
    """[N], [N] -> [N, 3, 3]"""
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], axis=1).reshape(-1, 3, 3)
    tilt = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], axis=1).reshape(-1, 3, 3)
    return np.asarray(turn @ tilt, np.float32)


@dataclass
class Piece:
    """Something under construction: its parts, and the random numbers and colors it is made with."""

    rng: Random
    palette: Sequence[Color]
    parts: list[Part] = field(default_factory=list)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def below(self, limit: int) -> int:
        return int(self.rng.random() * limit)

    def material(self, *patterns: Pattern, period: float = 0.12, glow: float = 0.0) -> Material:
        """A material with one of `patterns` of about `period` metres, in colors of the room's palette."""
        first, other = (self.palette[self.below(len(self.palette))] for _ in range(2))
        contrast = self.between(0.3, 1.0)
        red, green, blue = (a + contrast * (b - a) for a, b in zip(first, other, strict=True))
        return Material(
            pattern=patterns[self.below(len(patterns))],
            first=first,
            second=(red, green, blue),
            period=period * self.between(0.6, 1.7),
            salt=self.below(1 << 16),
            rough=self.between(0.02, 0.3),
            gloss=self.between(0, 0.5) ** 2,
            glow=glow,
        )

    def add(
        self,
        label: int,
        at: Point,
        size: Point,
        material: Material,
        *,
        shape: int = BOX,
        yaw: float = 0.0,
        pitch: float = 0.0,
    ) -> None:
        """A solid of `size` (width, height, depth) whose bottom center stands at `at`."""
        width, height, depth = size
        center = (at[0], at[1] + height / 2, at[2])
        self.parts.append(Part(label, center, (width / 2, height / 2, depth / 2), material, shape, yaw, pitch))

    def legs(self, label: int, top: tuple[float, float], height: float, thickness: float) -> None:
        """Four legs under the corners of a top of width × depth whose back is at z = 0."""
        material = self.material(Pattern.PLAIN, Pattern.WOOD)
        shape = CYLINDER if self.chance(0.4) else BOX
        x = top[0] / 2 - thickness
        for at in (
            (-x, 0, thickness),
            (x, 0, thickness),
            (-x, 0, top[1] - thickness),
            (x, 0, top[1] - thickness),
        ):
            self.add(label, at, (thickness, height, thickness), material, shape=shape)

    def join(self, maker: Maker, at: tuple[float, float], yaw: float) -> None:
        """Another piece of the same room, its frame standing at `at` (x, z), turned by `yaw`."""
        other = Piece(self.rng, self.palette)
        maker(other)
        self.parts += moved(other.parts, at, yaw)


Maker = Callable[[Piece], None]
