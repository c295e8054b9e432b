"""Generated rooms: furnished, lit, seen by a Kinect-like camera; a pure function of (seed, split, index)."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import numpy.typing as npt
from harness.errors import DataError

from nyuv2.data import furniture as fu
from nyuv2.data.lighting import Lights, Scene, photograph
from nyuv2.data.parts import (
    CEILING,
    FLOOR,
    PICTURE,
    TV,
    WALL,
    WINDOW,
    Area,
    Maker,
    Part,
    Piece,
    Point,
    footprint,
    moved,
    placed,
    solids_of,
)  # fmt: skip
from nyuv2.data.raycast import Camera, Hits, cast
from nyuv2.data.sample import CLASSES_13, DataInfo, Sample, class_names, make_sample
from nyuv2.data.textures import Color, Material, Pattern

Split = Literal["train", "val"]

_STREAM = {"train": 0, "val": 1}
_KINECT_FOCAL = 519.0  # pixels of a 640×480 frame
_CLEARANCE = 0.7  # metres between the camera and the nearest furniture
_SHELL = 0.1  # metres: thickness of walls, floor and ceiling

_ALONG_WALLS: tuple[tuple[Maker, ...], ...] = (  # by kind of room: bed, living, work, dining
    (fu.bed, fu.night_stand, fu.wardrobe, fu.dresser, fu.night_stand, fu.desk, fu.shelf, fu.tv_stand, fu.bed),
    (fu.sofa, fu.tv_stand, fu.shelf, fu.sofa, fu.floor_lamp, fu.dresser, fu.plant, fu.shelf),
    (fu.desk, fu.shelf, fu.dresser, fu.desk, fu.shelf, fu.sofa, fu.wardrobe, fu.plant),
    (fu.counter, fu.dresser, fu.counter, fu.tv_stand, fu.shelf, fu.plant, fu.sofa),
)
_FREE: tuple[tuple[Maker, ...], ...] = (
    (fu.chair, fu.things_on_the_floor, fu.things_on_the_floor),
    (fu.coffee_table, fu.sofa, fu.chair, fu.things_on_the_floor),
    (fu.table, fu.chair, fu.chair, fu.things_on_the_floor),
    (fu.table, fu.chair, fu.chair, fu.things_on_the_floor),
)


@dataclass(frozen=True)
class Picture:
    """What one camera sees of one room: image uint8 [H, W, 3], class ids int64 [H, W], and the exact hits."""

    image: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.int64]
    hits: Hits
    camera: Camera


class GeneratedRooms:
    """`count` rooms of one split, each seen once at `size` (height, width)."""

    def __init__(self, *, split: Split, size: tuple[int, int], classes: int, seed: int, count: int) -> None:
        names = class_names(classes, (13,), "the generated data set")
        if min(size) < 8:
            raise DataError(f"size: expected a height and a width of at least 8 pixels, found {size}")
        self.info = DataInfo("generated rooms", names, ("segmentation", "depth", "normal"))
        self._split = split
        self._size = size
        self._seed = seed
        self._count = count

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        picture = take_picture(self._seed, self._split, index, self._size)
        origin = f"generated room {index} of {self._split}, seed {self._seed}"
        return make_sample(
            image=picture.image,
            segmentation=picture.segmentation,
            depth=picture.hits.depth,
            normal=picture.hits.normal.transpose(1, 2, 0),
            classes=len(CLASSES_13),
            origin=dict.fromkeys(("image", "segmentation", "depth", "normal"), origin),
        )


def take_picture(seed: int, split: Split, index: int, size: tuple[int, int]) -> Picture:
    """Builds room `index` of a split and takes its picture; the room does not depend on the size."""
    plan_stream, sensor_stream = np.random.SeedSequence([seed, _STREAM[split], index]).spawn(2)
    plan = _Plan(Random(int.from_bytes(plan_stream.generate_state(4).tobytes(), "little")))
    camera = plan.camera(size)
    plan.furnish()
    scene = plan.scene()
    hits = cast(scene.solids, camera)
    image = photograph(scene, hits, camera, np.random.Generator(np.random.Philox(sensor_stream)))
    labels = np.array([part.label for part in plan.parts], np.int64)
    return Picture(image, labels[hits.solid], hits, camera)


class _Plan:
    """A room under construction: its parts in world coordinates, and the floor that is taken."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.width, self.depth = rng.uniform(3.0, 5.2), rng.uniform(3.2, 6.2)
        self.height = rng.uniform(2.3, 3.0)
        self.palette = [_color(rng) for _ in range(7)]
        self.parts: list[Part] = []
        self.taken: list[Area] = []
        self.windows: list[Point] = []
        self.walls = (  # where the wall's middle stands, the yaw of its frame, its length
            ((self.width / 2, 0.0), 0.0, self.width),
            ((self.width / 2, self.depth), math.pi, self.width),
            ((0.0, self.depth / 2), math.pi / 2, self.depth),
            ((self.width, self.depth / 2), -math.pi / 2, self.depth),
        )

    def camera(self, size: tuple[int, int]) -> Camera:
        """Hand-held near one end of the room, looking towards the other; nothing will stand close to it."""
        rng = self.rng
        near, far = rng.uniform(0.08, 0.3), rng.uniform(0.6, 0.95)
        if rng.random() < 0.5:
            near, far = 1 - near, 1 - far
        x, z = self.width * rng.uniform(0.2, 0.8), self.depth * near
        eye = min(rng.uniform(1.0, 1.75), self.height - 0.4)
        self.taken.append((x - _CLEARANCE, x + _CLEARANCE, z - _CLEARANCE, z + _CLEARANCE))
        target = (self.width * rng.uniform(0.2, 0.8), rng.uniform(0.4, 1.4), self.depth * far)
        back = np.array([x, eye, z]) - target
        back /= np.linalg.norm(back)  # the camera's z
        roll = rng.gauss(0, math.radians(2.5))
        right = np.cross([math.sin(roll), math.cos(roll), 0.0], back)
        right /= np.linalg.norm(right)
        height, width = size
        focal = _KINECT_FOCAL * rng.uniform(0.9, 1.1)
        return Camera(
            position=np.array([x, eye, z], np.float32),
            rotation=np.stack([right, np.cross(back, right), back], axis=1).astype(np.float32),
            fx=focal * width / 640,
            fy=focal * height / 480,
            cx=width * (0.5 + rng.gauss(0, 0.01)),
            cy=height * (0.5 + rng.gauss(0, 0.01)),
            height=height,
            width=width,
        )

    def furnish(self) -> None:
        self._add_shell()
        for origin, yaw, length in self.walls:
            self._decorate(origin, yaw, length)
        kind = self.rng.randrange(len(_ALONG_WALLS))
        for number, maker in enumerate(_ALONG_WALLS[kind]):
            if number < 2 or self.rng.random() < 0.8:
                self._stand_at_a_wall(maker)
        for number, maker in enumerate(_FREE[kind]):
            if number == 0 or self.rng.random() < 0.7:
                self._stand_free(maker)
        for maker in (fu.plant, fu.chair, fu.floor_lamp):
            if self.rng.random() < 0.3:
                self._stand_free(maker)

    def scene(self) -> Scene:
        size = np.array([self.width, self.height, self.depth], np.float32)
        materials = [part.material for part in self.parts]
        return Scene(size, solids_of(self.parts), materials, self._lights(), shell=self.shell)

    def _piece(self) -> Piece:
        return Piece(self.rng, self.palette)

    def _add_shell(self) -> None:
        w, h, d = self.width, self.height, self.depth
        wide, long = w + 2 * _SHELL, d + 2 * _SHELL
        p = self._piece()
        boards = (Pattern.PLAIN, Pattern.WOOD, Pattern.GRID, Pattern.BLOTCHES, Pattern.CHECKS)
        paper = (Pattern.PLAIN, Pattern.PLAIN, Pattern.STRIPES, Pattern.BLOTCHES, Pattern.GRID)
        p.add(FLOOR, (w / 2, -_SHELL, d / 2), (wide, _SHELL, long), p.material(*boards, period=0.4))
        ceiling = p.material(Pattern.PLAIN, Pattern.PLAIN, Pattern.GRID, Pattern.WOOD, period=0.6)
        p.add(CEILING, (w / 2, h, d / 2), (wide, _SHELL, long), ceiling)
        wall = p.material(*paper, period=0.3)
        accent = p.material(*paper, period=0.3) if p.chance(0.3) else wall
        for z in (-_SHELL / 2, d + _SHELL / 2):
            p.add(WALL, (w / 2, 0, z), (wide, h, _SHELL), accent)
        for x in (-_SHELL / 2, w + _SHELL / 2):
            p.add(WALL, (x, 0, d / 2), (_SHELL, h, long), wall)
        if p.chance(0.4):
            at = (w * p.between(0.35, 0.65), 0.0, d * p.between(0.35, 0.65))
            rug = p.material(Pattern.CHECKS, Pattern.BLOTCHES, Pattern.STRIPES, period=0.3)
            p.add(FLOOR, at, (p.between(1.2, 2.2), 0.012, p.between(1.2, 2.4)), rug)
        self.parts += p.parts
        self.shell = len(self.parts)

    def _decorate(self, origin: tuple[float, float], yaw: float, length: float) -> None:
        """Doors, windows, televisions and pictures side by side on one wall."""
        p = self._piece()
        has_windows = p.chance(0.55)
        x = -length / 2 + p.between(0.1, 0.5)
        while True:
            draw = self.rng.random()
            if draw < 0.12:
                label, lift, thick = WALL, 0.0, 0.04
                width, tall = p.between(0.75, 0.95), 2.05
                cover = p.material(Pattern.DRAWERS, Pattern.PLAIN, Pattern.WOOD, period=0.9)
            elif draw < 0.2:
                label, lift, thick = TV, p.between(0.95, 1.3), p.between(0.05, 0.1)
                width = p.between(0.8, 1.3)
                tall = width * 0.58
                cover = p.material(Pattern.SCREEN, glow=p.between(0, 0.6) if p.chance(0.4) else 0.0)
            elif draw < 0.55 and has_windows:
                label, lift, thick = WINDOW, p.between(0.75, 0.95), 0.03
                width, tall = p.between(0.8, 1.8), p.between(0.9, 1.4)
                cover = self._glass(p)
            else:
                label, lift, thick = PICTURE, p.between(1.15, 1.5), p.between(0.02, 0.04)
                width, tall = p.between(0.3, 1.0), p.between(0.35, 0.8)
                cover = p.material(Pattern.FRAMED, Pattern.FRAMED, Pattern.COLLAGE)
            if x + width > length / 2 - 0.1:
                break
            tall = min(tall, self.height - lift - 0.08)
            middle = x + width / 2
            p.add(label, (middle, lift, thick / 2), (width, tall, thick), cover)
            if label == WINDOW:
                self._dress_window(p, (middle, lift, 0.06), width, tall)
                self.windows.append(placed((middle, lift + tall / 2, 0.4), origin, yaw))
            x += width + p.between(0.15, 0.9)
        self.parts += moved(p.parts, origin, yaw)

    def _glass(self, p: Piece) -> Material:
        """Panes by day or by night, or closed blinds."""
        daylight = p.between(0.0, 1.6)
        if p.chance(0.3):
            return p.material(Pattern.STRIPES, period=0.1, glow=0.4 * daylight)
        return p.material(Pattern.PANES, period=1.0, glow=daylight)

    def _dress_window(self, p: Piece, at: Point, width: float, tall: float) -> None:
        """A sill, and maybe a curtain on each side."""
        middle, lift, out = at
        sill = p.material(Pattern.PLAIN, Pattern.WOOD)
        p.add(WINDOW, (middle, lift - 0.04, out), (width + 0.1, 0.04, 2 * out), sill)
        if p.chance(0.4):
            cloth = p.material(Pattern.STRIPES, Pattern.DOTS, Pattern.BLOTCHES, Pattern.PLAIN, period=0.08)
            bottom = p.between(0.05, lift - 0.1)
            each = width * p.between(0.15, 0.3)
            for side in (-1, 1):
                x = middle + side * (width / 2 - each / 2 + 0.06)
                p.add(WINDOW, (x, bottom, 0.11), (each, lift + tall + 0.08 - bottom, 0.07), cloth)

    def _stand_at_a_wall(self, maker: Maker) -> None:
        """Places a piece with its back to some wall, where it fits; else it is left out."""
        p = self._piece()
        maker(p)
        area = footprint(p.parts)
        left, right, back, _ = area
        for _ in range(10):
            origin, yaw, length = self.walls[self.rng.randrange(4)]
            play = (length - (right - left)) / 2 - 0.03
            if play > 0:
                shift = self.rng.uniform(-play, play) - (left + right) / 2
                x, _, z = placed((shift, 0.0, 0.02 - back), origin, yaw)
                if self._claim(area, (x, z), yaw):
                    self.parts += moved(p.parts, (x, z), yaw)
                    return

    def _stand_free(self, maker: Maker) -> None:
        """Places a piece somewhere in the room, roughly along a wall, where it fits; else it is left out."""
        p = self._piece()
        maker(p)
        area = footprint(p.parts)
        for _ in range(10):
            yaw = self.rng.randrange(4) * math.pi / 2 + self.rng.gauss(0, 0.15)
            at = (self.width * self.rng.uniform(0.1, 0.9), self.depth * self.rng.uniform(0.1, 0.9))
            if self._claim(area, at, yaw):
                self.parts += moved(p.parts, at, yaw)
                return

    def _claim(self, area: Area, at: tuple[float, float], yaw: float) -> bool:
        """Takes the floor under a piece whose own frame stands at `at`, if it is free."""
        corners = [placed((x, 0.0, z), at, yaw) for x in area[:2] for z in area[2:]]
        left, right = min(c[0] for c in corners), max(c[0] for c in corners)
        back, front = min(c[2] for c in corners), max(c[2] for c in corners)
        gap = 0.005
        if left < gap or right > self.width - gap or back < gap or front > self.depth - gap:
            return False
        for other_left, other_right, other_back, other_front in self.taken:
            if left < other_right and other_left < right and back < other_front and other_back < front:
                return False
        self.taken.append((left, right, back, front))
        return True

    def _lights(self) -> Lights:
        """One or two lamps at the ceiling and daylight from up to two windows, in any order of strength."""
        rng = self.rng
        positions = self.windows[:2]
        for _ in range(1 + rng.randrange(2)):
            x, z = self.width * rng.uniform(0.25, 0.75), self.depth * rng.uniform(0.25, 0.75)
            positions.append((x, self.height - rng.uniform(0.1, 0.5), z))
        first = rng.randrange(len(positions))
        positions = positions[first:] + positions[:first]
        power = []
        for rank in range(len(positions)):
            strength, warmth = rng.uniform(1.5, 4.0) / (1 + rank), rng.uniform(-0.2, 0.3)
            power.append((strength * (1 + warmth), strength, strength * (1 - warmth)))
        return Lights(np.array(positions, np.float32), np.array(power, np.float32), rng.uniform(0.2, 0.6))


def _color(rng: Random) -> Color:
    """A color of the room's palette, linear RGB: half of them woods and greys, half of them any color."""
    if rng.random() < 0.5:
        hue, saturation = rng.uniform(0.05, 0.13), rng.uniform(0.0, 0.6)
    else:
        hue, saturation = rng.random(), rng.uniform(0.1, 0.85)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.15, 0.95))
    return red**2, green**2, blue**2
