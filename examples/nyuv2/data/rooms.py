"""Generated rooms: furnished, lit, seen by a Kinect-like camera; a pure function of (seed, split, index)."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import numpy.typing as npt

from nyuv2.data import furniture as fu
from nyuv2.data.furniture import Maker, Part, Piece
from nyuv2.data.raycast import Camera, Floats, Solids, cast
from nyuv2.data.sample import CLASSES_13, DataError, DataInfo, Sample, class_names, make_sample
from nyuv2.data.surfaces import Color, Lights, Material, Pattern, photograph

Split = Literal["train", "val"]

_STREAM = {"train": 0, "val": 1}
_KINECT_FOCAL = 519.0  # pixels of a 640×480 frame
_CLEARANCE = 0.75  # metres between the camera and the nearest furniture
_SHELL = 0.1  # metres: thickness of walls, floor and ceiling

_ROOMS: tuple[tuple[Maker, ...], ...] = (  # what stands along the walls, the first pieces surely
    (fu.bed, fu.night_stand, fu.wardrobe, fu.dresser, fu.night_stand, fu.desk, fu.shelf, fu.tv_stand, fu.bed),
    (fu.sofa, fu.tv_stand, fu.shelf, fu.sofa, fu.floor_lamp, fu.dresser, fu.plant, fu.shelf),
    (fu.desk, fu.shelf, fu.dresser, fu.desk, fu.shelf, fu.sofa, fu.wardrobe, fu.plant),
    (fu.counter, fu.dresser, fu.counter, fu.tv_stand, fu.shelf, fu.plant, fu.sofa),
)
_CENTERS: tuple[tuple[Maker, ...], ...] = (  # what stands free in the room
    (fu.chair, fu.things_on_the_floor),
    (fu.coffee_table, fu.sofa, fu.chair),
    (fu.chair, fu.chair, fu.table),
    (fu.table, fu.chair, fu.chair, fu.chair, fu.chair),
)


@dataclass(frozen=True)
class Room:
    """A furnished room: its size (x, y, z) in metres, the solids with their classes and materials, and its lights."""

    size: Floats
    solids: Solids
    labels: npt.NDArray[np.int64]
    materials: list[Material]
    lights: Lights


@dataclass(frozen=True)
class Picture:
    """What one camera sees of one room. image uint8 [H, W, 3]; segmentation int64 [H, W]; depth float32 [H, W];
    normal float32 [H, W, 3]; solid int64 [H, W]: which of the room's solids each pixel shows."""

    image: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.int64]
    depth: Floats
    normal: Floats
    solid: npt.NDArray[np.int64]


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
        picture, _ = take_picture(self._seed, self._split, index, self._size)
        origin = f"generated room {index} of {self._split}, seed {self._seed}"
        return make_sample(
            image=picture.image,
            segmentation=picture.segmentation,
            depth=picture.depth,
            normal=picture.normal,
            classes=len(CLASSES_13),
            origin=dict.fromkeys(("image", "segmentation", "depth", "normal"), origin),
        )


def take_picture(seed: int, split: Split, index: int, size: tuple[int, int]) -> tuple[Picture, Camera]:
    """Builds room `index` of a split and takes its picture at `size`; the room does not depend on the size."""
    plan, sensor = np.random.SeedSequence([seed, _STREAM[split], index]).spawn(2)
    rng = Random(int.from_bytes(plan.generate_state(4).tobytes(), "little"))
    room, camera = _build(rng, size)
    hits = cast(room.solids, camera)
    noise = np.random.Generator(np.random.Philox(sensor))
    image = photograph(hits, room.solids, room.materials, room.lights, camera, room.size, noise)
    normal = np.ascontiguousarray(hits.normal.transpose(1, 2, 0))
    return Picture(image, room.labels[hits.solid], hits.depth, normal, hits.solid), camera


def _build(rng: Random, size: tuple[int, int]) -> tuple[Room, Camera]:
    plan = _Plan(rng)
    plan.shell()
    camera = plan.camera(size)
    for _ in range(4):
        plan.decorate_wall()
    kind = rng.randrange(len(_ROOMS))
    for number, maker in enumerate(_ROOMS[kind]):
        if number < 2 or rng.random() < 0.6:
            plan.stand_at_a_wall(maker)
    for number, maker in enumerate(_CENTERS[kind]):
        if number == 0 or rng.random() < 0.7:
            plan.stand_free(maker)
    for maker in (fu.things_on_the_floor, fu.plant, fu.chair, fu.floor_lamp):
        if rng.random() < 0.35:
            plan.stand_free(maker)
    return plan.room(), camera


class _Plan:
    """A room under construction: parts in world coordinates, and the floor area already taken."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.width, self.height, self.depth = (
            rng.uniform(3.0, 5.5),
            rng.uniform(2.3, 3.0),
            rng.uniform(3.2, 6.5),
        )
        self.palette = tuple(_color(rng) for _ in range(7))
        self.parts: list[Part] = []
        self.taken: list[tuple[float, float, float, float]] = []  # left, right, back, front
        self.walls = [  # origin of the wall's frame, its yaw, its length
            ((self.width / 2, 0.0), 0.0, self.width),
            ((self.width / 2, self.depth), math.pi, self.width),
            ((0.0, self.depth / 2), math.pi / 2, self.depth),
            ((self.width, self.depth / 2), -math.pi / 2, self.depth),
        ]
        self.bare_walls = list(range(4))
        self.daylight: list[tuple[float, float, float]] = []

    def piece(self) -> Piece:
        return Piece(self.rng, self.palette)

    def shell(self) -> None:
        w, h, d = self.width, self.height, self.depth
        p = self.piece()
        cover = (Pattern.PLAIN, Pattern.WOOD, Pattern.GRID, Pattern.BLOTCHES, Pattern.CHECKS)
        paper = (Pattern.PLAIN, Pattern.PLAIN, Pattern.STRIPES, Pattern.BLOTCHES, Pattern.GRID)
        wide, long = w + 2 * _SHELL, d + 2 * _SHELL
        p.add(fu.FLOOR, (w / 2, -_SHELL, d / 2), (wide, _SHELL, long), p.material(*cover, period=0.4))
        ceiling = p.material(Pattern.PLAIN, Pattern.PLAIN, Pattern.GRID, Pattern.WOOD, period=0.6)
        p.add(fu.CEILING, (w / 2, h, d / 2), (wide, _SHELL, long), ceiling)
        wall = p.material(*paper, period=0.3)
        accent = p.material(*paper, period=0.3) if p.chance(0.3) else wall
        for z in (-_SHELL / 2, d + _SHELL / 2):
            p.add(fu.WALL, (w / 2, 0, z), (wide, h, _SHELL), accent)
        for x in (-_SHELL / 2, w + _SHELL / 2):
            p.add(fu.WALL, (x, 0, d / 2), (_SHELL, h, long), wall)
        if p.chance(0.4):  # a rug
            size = (p.between(1.2, 2.2), 0.012, p.between(1.2, 2.4))
            at = (w * p.between(0.35, 0.65), 0.0, d * p.between(0.35, 0.65))
            p.add(
                fu.FLOOR, at, size, p.material(Pattern.CHECKS, Pattern.BLOTCHES, Pattern.STRIPES, period=0.3)
            )
        self.parts += p.parts

    def camera(self, size: tuple[int, int]) -> Camera:
        """Hand-held near one end of the room, looking towards the other; nothing may stand close to it."""
        rng = self.rng
        near, far = rng.uniform(0.08, 0.3), rng.uniform(0.6, 0.95)
        if rng.random() < 0.5:
            near, far = 1 - near, 1 - far
        x, z = self.width * rng.uniform(0.2, 0.8), self.depth * near
        target_x, target_z = self.width * rng.uniform(0.2, 0.8), self.depth * far
        eye = min(rng.uniform(1.0, 1.75), self.height - 0.4)
        look = rng.uniform(0.5, 1.5)
        self.taken.append((x - _CLEARANCE, x + _CLEARANCE, z - _CLEARANCE, z + _CLEARANCE))
        back = np.array([x - target_x, eye - look, z - target_z])
        back /= np.linalg.norm(back)  # the camera's z
        roll = rng.gauss(0, math.radians(2.5))
        right = np.cross([math.sin(roll), math.cos(roll), 0.0], back)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(back, right), back], axis=1)
        height, width = size
        focal = _KINECT_FOCAL * rng.uniform(0.9, 1.1)
        return Camera(
            position=np.array([x, eye, z], np.float32),
            rotation=rotation.astype(np.float32),
            fx=focal * width / 640,
            fy=focal * height / 480,
            cx=width * (0.5 + rng.gauss(0, 0.01)),
            cy=height * (0.5 + rng.gauss(0, 0.01)),
            height=height,
            width=width,
        )

    def decorate_wall(self) -> None:
        """Doors, windows, curtains, pictures and televisions side by side on one wall."""
        number = self.bare_walls.pop()
        origin, yaw, length = self.walls[number]
        p = self.piece()
        x = -length / 2 + p.between(0.1, 0.5)
        windows = p.chance(0.55)
        while True:
            draw = self.rng.random()
            if draw < 0.12:
                width, height = p.between(0.75, 0.95), 2.05
                door = p.material(Pattern.DRAWERS, Pattern.PLAIN, Pattern.WOOD, period=0.9)
                tall, lift, label, thick = height, 0.0, fu.WALL, 0.04
                material = door
            elif draw < 0.5 and windows:
                width, tall = p.between(0.8, 1.8), p.between(0.9, 1.4)
                lift, label, thick = p.between(0.75, 0.95), fu.WINDOW, 0.03
                day = p.between(0.0, 1.6)
                blind = p.chance(0.3)
                material = p.material(
                    Pattern.STRIPES if blind else Pattern.PANES, period=1.0, glow=day * (0.4 if blind else 1)
                )
            elif draw < 0.58:
                width = p.between(0.8, 1.3)
                tall, lift, label, thick = width * 0.58, p.between(0.95, 1.3), fu.TV, p.between(0.05, 0.1)
                material = p.material(Pattern.SCREEN, glow=p.between(0, 0.6) if p.chance(0.4) else 0.0)
            else:
                width, tall = p.between(0.3, 1.0), p.between(0.35, 0.8)
                lift, label, thick = p.between(1.15, 1.5), fu.PICTURE, p.between(0.02, 0.04)
                material = p.material(Pattern.FRAMED, Pattern.FRAMED, Pattern.COLLAGE)
            if x + width > length / 2 - 0.1:
                break
            tall = min(tall, self.height - lift - 0.08)
            middle = x + width / 2
            p.add(label, (middle, lift, thick / 2), (width, tall, thick), material)
            if label == fu.WINDOW:
                self._dress_window(p, middle, lift, width, tall)
                self.daylight.append(_world(origin, yaw, (middle, lift + tall / 2, 0.4)))
            x += width + p.between(0.15, 0.9)
        self.parts += _moved(p.parts, origin, yaw)

    def _dress_window(self, p: Piece, middle: float, lift: float, width: float, tall: float) -> None:
        frame = p.material(Pattern.PLAIN, Pattern.WOOD)
        p.add(fu.WINDOW, (middle, lift - 0.04, 0.06), (width + 0.1, 0.04, 0.12), frame)
        if p.chance(0.4):
            cloth = p.material(Pattern.STRIPES, Pattern.DOTS, Pattern.BLOTCHES, Pattern.PLAIN, period=0.08)
            bottom = p.between(0.05, lift - 0.1)
            each = width * p.between(0.15, 0.3)
            for side in (-1, 1):
                at = (middle + side * (width / 2 - each / 2 + 0.06), bottom, 0.11)
                p.add(fu.WINDOW, at, (each, lift + tall + 0.08 - bottom, 0.07), cloth)

    def stand_at_a_wall(self, maker: Maker) -> None:
        """Places a piece with its back to some wall, where it fits; else it is left out."""
        p = self.piece()
        maker(p)
        left, right, back, front = p.footprint()
        for _ in range(8):
            origin, yaw, length = self.walls[self.rng.randrange(4)]
            room = (length - (right - left)) / 2 - 0.03
            if room <= 0:
                continue
            shift = self.rng.uniform(-room, room) - (left + right) / 2
            at = _world(origin, yaw, (shift, 0.0, 0.02 - back))
            if self._claim(p, (at[0], at[2]), yaw):
                return

    def stand_free(self, maker: Maker) -> None:
        """Places a piece somewhere in the room, turned roughly along a wall."""
        p = self.piece()
        maker(p)
        for _ in range(8):
            yaw = self.rng.randrange(4) * math.pi / 2 + self.rng.gauss(0, 0.15)
            at = (self.width * self.rng.uniform(0.1, 0.9), self.depth * self.rng.uniform(0.1, 0.9))
            if self._claim(p, at, yaw):
                return

    def _claim(self, p: Piece, at: tuple[float, float], yaw: float) -> bool:
        left, right, back, front = p.footprint()
        corners = [_world(at, yaw, (x, 0.0, z)) for x in (left, right) for z in (back, front)]
        xs, zs = [c[0] for c in corners], [c[2] for c in corners]
        area = (min(xs), max(xs), min(zs), max(zs))
        if area[0] < 0.005 or area[1] > self.width - 0.005 or area[2] < 0.005 or area[3] > self.depth - 0.005:
            return False
        for other in self.taken:
            if area[0] < other[1] and other[0] < area[1] and area[2] < other[3] and other[2] < area[3]:
                return False
        self.taken.append(area)
        self.parts += _moved(p.parts, at, yaw)
        return True

    def room(self) -> Room:
        parts = self.parts
        yaw = np.array([p.yaw for p in parts])
        pitch = np.array([p.pitch for p in parts])
        solids = Solids(
            shape=np.array([p.shape for p in parts], np.int64),
            center=np.array([p.center for p in parts], np.float32),
            half=np.array([p.half for p in parts], np.float32),
            rotation=_rotations(yaw, pitch),
        )
        size = np.array([self.width, self.height, self.depth], np.float32)
        labels = np.array([p.label for p in parts], np.int64)
        return Room(size, solids, labels, [p.material for p in parts], self._lights())

    def _lights(self) -> Lights:
        """A lamp at the ceiling, maybe a second one, and one behind every window."""
        rng = self.rng
        positions = []
        for _ in range(1 + rng.randrange(2)):
            x, z = self.width * rng.uniform(0.25, 0.75), self.depth * rng.uniform(0.25, 0.75)
            positions.append((x, self.height - rng.uniform(0.1, 0.5), z))
        daylight = self.daylight[:2]
        rng.shuffle(daylight)
        if daylight and rng.random() < 0.5:  # the strongest light comes from a window
            positions = daylight + positions
        else:
            positions = positions + daylight
        power = []
        for rank in range(len(positions)):
            strength = rng.uniform(1.5, 4.0) / (1 + rank)
            warmth = rng.uniform(-0.2, 0.3)
            power.append((strength * (1 + warmth), strength, strength * (1 - warmth)))
        ambient = rng.uniform(0.2, 0.6)
        return Lights(
            np.array(positions, np.float32),
            np.array(power, np.float32),
            np.full(3, ambient, dtype=np.float32),
        )


def _color(rng: Random) -> Color:
    """A color of the room's palette, linear RGB: half of them woods and greys, half of them any color."""
    if rng.random() < 0.5:
        hue, saturation = rng.uniform(0.05, 0.13), rng.uniform(0.0, 0.6)
    else:
        hue, saturation = rng.random(), rng.uniform(0.1, 0.85)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.15, 0.95))
    return red**2, green**2, blue**2


def _world(
    origin: tuple[float, float], yaw: float, point: tuple[float, float, float]
) -> tuple[float, float, float]:
    """A point of a piece's frame that stands at `origin` (x, z), turned by `yaw`, in world coordinates."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    x, y, z = point
    return origin[0] + cosine * x + sine * z, y, origin[1] - sine * x + cosine * z


def _moved(parts: Sequence[Part], origin: tuple[float, float], yaw: float) -> list[Part]:
    return [
        Part(p.label, _world(origin, yaw, p.center), p.half, p.material, p.shape, p.yaw + yaw, p.pitch)
        for p in parts
    ]


def _rotations(yaw: npt.NDArray[np.float64], pitch: npt.NDArray[np.float64]) -> Floats:
    """Rotation by pitch about x, then by yaw about y. [N], [N] -> [N, 3, 3]"""
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], axis=1).reshape(-1, 3, 3)
    tilt = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], axis=1).reshape(-1, 3, 3)
    return (turn @ tilt).astype(np.float32)
