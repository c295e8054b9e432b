"""Furniture as lists of solids, each piece in its own frame: x along its front, y up from the floor, z from its back.

Sizes are those of the shops; every size, count and material varies. Materials come from one distribution for all
classes, so that color alone does not tell what a surface is; patterns, shapes and places do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from nyuv2.data.raycast import BOX, CYLINDER, ELLIPSOID
from nyuv2.data.sample import CLASSES_13
from nyuv2.data.surfaces import Material, Pattern

BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(
    len(CLASSES_13)
)


@dataclass(frozen=True)
class Part:
    """One solid: class, center and half extents in metres, yaw about y then pitch about its x, in radians."""

    label: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    shape: int = BOX
    yaw: float = 0.0
    pitch: float = 0.0


@dataclass
class Piece:
    """A piece of furniture under construction: its parts, and the random numbers and colors it is made with."""

    rng: Random
    palette: tuple[tuple[float, float, float], ...]
    parts: list[Part] = field(default_factory=list)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def pick(self, *choices: Pattern) -> Pattern:
        return choices[int(self.rng.random() * len(choices))]

    def material(self, *patterns: Pattern, period: float = 0.12, glow: float = 0.0) -> Material:
        """A material with one of `patterns` of about `period` metres, in two colors of the room's palette."""
        rng = self.rng
        first, second = (self.palette[int(rng.random() * len(self.palette))] for _ in range(2))
        blend = self.between(0.3, 1.0)
        other = tuple(a + blend * (b - a) for a, b in zip(first, second, strict=True))
        return Material(
            pattern=self.pick(*patterns),
            first=first,
            second=(other[0], other[1], other[2]),
            period=period * self.between(0.6, 1.7),
            salt=int(rng.random() * (1 << 16)),
            rough=self.between(0.02, 0.3),
            gloss=self.between(0, 0.5) ** 2,
            glow=glow,
        )

    def add(
        self, label: int, at: tuple[float, float, float], size: tuple[float, float, float], material: Material,
        *, shape: int = BOX, yaw: float = 0.0, pitch: float = 0.0,
    ) -> None:  # fmt: skip
        """A solid of `size` (width, height, depth) whose bottom center stands at `at`."""
        width, height, depth = size
        center = (at[0], at[1] + height / 2, at[2])
        half = (width / 2, height / 2, depth / 2)
        self.parts.append(Part(label, center, half, material, shape, yaw, pitch))

    def legs(
        self, label: int, width: float, depth: float, height: float, thickness: float, middle: float
    ) -> None:
        """Four legs under the corners of a top of width × depth whose center lies at z = middle."""
        material = self.material(Pattern.PLAIN, Pattern.WOOD)
        shape = CYLINDER if self.chance(0.4) else BOX
        x, z = width / 2 - thickness, depth / 2 - thickness
        for side, front in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            self.add(
                label,
                (side * x, 0, middle + front * z),
                (thickness, height, thickness),
                material,
                shape=shape,
            )

    def footprint(self) -> tuple[float, float, float, float]:
        """x and z range of the piece: left, right, back, front."""
        reach = [(p.center[0], p.center[2], (p.half[0] + p.half[2]) if p.yaw else 0.0, p) for p in self.parts]
        return (
            min(x - (r or p.half[0]) for x, _, r, p in reach),
            max(x + (r or p.half[0]) for x, _, r, p in reach),
            min(z - (r or p.half[2]) for _, z, r, p in reach),
            max(z + (r or p.half[2]) for _, z, r, p in reach),
        )


Maker = Callable[[Piece], None]

_CLOTH = (Pattern.PLAIN, Pattern.BLOTCHES, Pattern.STRIPES, Pattern.CHECKS, Pattern.DOTS)
_BOARD = (Pattern.PLAIN, Pattern.WOOD, Pattern.WOOD, Pattern.BLOTCHES)


def bed(p: Piece) -> None:
    width, length, height = p.between(0.95, 1.9), p.between(1.9, 2.15), p.between(0.4, 0.65)
    frame = p.between(0.15, 0.3)
    p.add(BED, (0, 0, length / 2), (width, frame, length), p.material(*_BOARD))
    cover = p.material(*_CLOTH, period=0.2)
    p.add(BED, (0, frame, length / 2), (width - 0.04, height - frame, length - 0.04), cover)
    if p.chance(0.7):
        p.add(BED, (0, 0, -0.04), (width + 0.06, p.between(0.85, 1.3), 0.07), p.material(*_BOARD))
    if p.chance(0.6):  # a blanket over the lower half
        part = length * p.between(0.35, 0.7)
        quilt = p.material(*_CLOTH, period=0.25)
        p.add(BED, (0, frame + 0.02, length - part / 2), (width + 0.03, height - frame + 0.02, part), quilt)
    case = p.material(*_CLOTH)
    for side in (-1, 1) if width > 1.3 else (0,):
        size = (p.between(0.5, 0.65), p.between(0.14, 0.22), p.between(0.32, 0.45))
        at = (side * width / 4, height - 0.03, p.between(0.22, 0.35))
        p.add(OBJECTS, at, size, case, shape=ELLIPSOID, yaw=p.between(-0.2, 0.2))
    _clutter(p, width * 0.4, length * 0.5, length * 0.9, height + 0.02, p.rng.randrange(3))


def sofa(p: Piece) -> None:
    seats = 1 + int(p.rng.random() * 3)
    arm, depth = p.between(0.12, 0.25), p.between(0.8, 0.95)
    width = seats * p.between(0.55, 0.68) + 2 * arm
    seat, back = p.between(0.38, 0.46), p.between(0.75, 0.95)
    cloth = p.material(*_CLOTH, period=0.1)
    p.add(SOFA, (0, 0.05, depth / 2), (width, seat - 0.17, depth), cloth)
    p.add(SOFA, (0, 0.1, 0.11), (width, back - 0.1, 0.22), cloth, pitch=-0.08)
    cushion = cloth if p.chance(0.7) else p.material(*_CLOTH)
    each = (width - 2 * arm) / seats
    for i in range(seats):
        x = -width / 2 + arm + (i + 0.5) * each
        p.add(SOFA, (x, seat - 0.13, depth / 2 + 0.1), (each - 0.02, 0.15, depth - 0.22), cushion)
        p.add(SOFA, (x, seat, 0.27), (each - 0.03, back - seat - 0.03, 0.16), cushion, pitch=-0.15)
    for side in (-1, 1):
        p.add(
            SOFA, (side * (width - arm) / 2, 0.05, depth / 2), (arm, seat + p.between(0.1, 0.2), depth), cloth
        )
    for _ in range(p.rng.randrange(3)):  # throw pillows
        x = p.between(-0.35, 0.35) * width
        size = (0.42, 0.38, 0.14)
        p.add(
            OBJECTS,
            (x, seat, 0.42),
            size,
            p.material(*_CLOTH),
            shape=ELLIPSOID,
            pitch=-0.3,
            yaw=p.between(-0.4, 0.4),
        )


def chair(p: Piece) -> None:
    width, depth, seat = p.between(0.4, 0.52), p.between(0.4, 0.5), p.between(0.42, 0.5)
    top = p.between(0.8, 1.05)
    cloth, frame = p.material(*_CLOTH, *_BOARD, period=0.08), p.material(*_BOARD)
    p.add(CHAIR, (0, seat - 0.06, depth / 2), (width, p.between(0.04, 0.1), depth), cloth)
    if p.chance(0.5):
        p.add(CHAIR, (0, seat + 0.06, 0.02), (width, top - seat - 0.06, 0.05), cloth, pitch=-0.12)
    else:
        for side in (-1, 1):
            p.add(CHAIR, (side * (width / 2 - 0.03), seat, 0.02), (0.04, top - seat, 0.04), frame, pitch=-0.1)
        for i in range(2 + p.rng.randrange(2)):
            p.add(CHAIR, (0, seat + 0.13 + 0.13 * i, 0.01), (width - 0.04, 0.06, 0.025), frame, pitch=-0.1)
    if p.chance(0.35):  # an office chair: a column on a star
        p.add(CHAIR, (0, 0.05, depth / 2), (0.07, seat - 0.1, 0.07), frame, shape=CYLINDER)
        for turn in (0.3, 1.35, 2.4):
            p.add(CHAIR, (0, 0.02, depth / 2), (0.58, 0.05, 0.06), frame, yaw=turn)
    else:
        p.legs(CHAIR, width, depth, seat - 0.05, 0.04, depth / 2)
    if p.chance(0.3):
        for side in (-1, 1):
            p.add(CHAIR, (side * width / 2, seat + 0.18, depth / 2), (0.05, 0.04, depth * 0.8), frame)
            p.add(CHAIR, (side * width / 2, seat - 0.02, depth * 0.8), (0.04, 0.2, 0.04), frame)


def table(p: Piece) -> None:
    """A dining table, or a round one on a column."""
    height, board = p.between(0.7, 0.78), p.between(0.025, 0.06)
    if p.chance(0.25):
        across = p.between(0.8, 1.3)
        top, foot = p.material(*_BOARD), p.material(*_BOARD)
        p.add(TABLE, (0, height - board, across / 2), (across, board, across), top, shape=CYLINDER)
        p.add(TABLE, (0, 0, across / 2), (0.12, height - board, 0.12), foot, shape=CYLINDER)
        p.add(TABLE, (0, 0, across / 2), (0.5, 0.04, 0.5), foot, shape=CYLINDER)
        width = depth = across * 0.65
        back = (across - depth) / 2
    else:
        width, depth, back = p.between(1.0, 2.0), p.between(0.7, 1.0), 0.0
        p.add(
            TABLE, (0, height - board, depth / 2), (width, board, depth), p.material(*_BOARD, Pattern.CHECKS)
        )
        p.legs(TABLE, width, depth, height - board, p.between(0.05, 0.09), depth / 2)
    _clutter(p, width * 0.45, back + depth * 0.1, back + depth * 0.9, height, 1 + p.rng.randrange(4))


def coffee_table(p: Piece) -> None:
    width, depth, height = p.between(0.7, 1.3), p.between(0.45, 0.7), p.between(0.35, 0.5)
    p.add(TABLE, (0, height - 0.05, depth / 2), (width, 0.05, depth), p.material(*_BOARD))
    if p.chance(0.4):
        p.add(TABLE, (0, 0.1, depth / 2), (width - 0.1, 0.03, depth - 0.1), p.material(*_BOARD))
    p.legs(TABLE, width, depth, height - 0.05, 0.06, depth / 2)
    _clutter(p, width * 0.45, depth * 0.1, depth * 0.9, height, 1 + p.rng.randrange(3))


def desk(p: Piece) -> None:
    width, depth, height = p.between(1.0, 1.7), p.between(0.55, 0.8), p.between(0.7, 0.78)
    board = p.material(*_BOARD)
    p.add(TABLE, (0, height - 0.04, depth / 2), (width, 0.04, depth), board)
    if p.chance(0.6):
        drawers = p.material(Pattern.DRAWERS, period=0.2)
        p.add(TABLE, (width / 2 - 0.22, 0, depth / 2), (0.4, height - 0.04, depth - 0.06), drawers)
        p.add(TABLE, (-width / 2 + 0.03, 0, depth / 2), (0.04, height - 0.04, depth - 0.04), board)
    else:
        p.legs(TABLE, width, depth, height - 0.04, 0.05, depth / 2)
    if p.chance(0.6):  # a monitor and a keyboard
        x, wide = p.between(-0.2, 0.2) * width, p.between(0.42, 0.6)
        p.add(OBJECTS, (x, height + 0.08, depth * 0.3), (wide, wide * 0.62, 0.04), p.material(Pattern.SCREEN))
        p.add(OBJECTS, (x, height, depth * 0.28), (0.2, 0.1, 0.12), p.material(Pattern.PLAIN))
        p.add(OBJECTS, (x, height, depth * 0.75), (0.42, 0.025, 0.14), p.material(Pattern.GRID, period=0.03))
    _row_of_books(p, -width * 0.33, depth * 0.25, height, p.between(0.15, 0.4))
    _clutter(p, width * 0.45, depth * 0.15, depth * 0.85, height, 1 + p.rng.randrange(4))


def wardrobe(p: Piece) -> None:
    size = (p.between(0.8, 1.8), p.between(1.5, 2.1), p.between(0.45, 0.65))
    p.add(
        FURNITURE,
        (0, 0, size[2] / 2),
        size,
        p.material(Pattern.DRAWERS, Pattern.GRID, Pattern.WOOD, period=0.5),
    )


def dresser(p: Piece) -> None:
    width, height, depth = p.between(0.6, 1.5), p.between(0.6, 1.2), p.between(0.4, 0.55)
    front = p.material(Pattern.DRAWERS, Pattern.DRAWERS, Pattern.GRID, period=0.3)
    p.add(FURNITURE, (0, 0, depth / 2), (width, height, depth), front)
    p.add(FURNITURE, (0, height, depth / 2), (width + 0.04, 0.03, depth + 0.03), p.material(*_BOARD))
    if p.chance(0.5):
        _row_of_books(p, p.between(-0.2, 0.2) * width, depth * 0.4, height + 0.03, p.between(0.2, 0.5))
    _clutter(p, width * 0.45, depth * 0.15, depth * 0.85, height + 0.03, p.rng.randrange(5))


def counter(p: Piece) -> None:
    width, height, depth = p.between(1.4, 2.8), p.between(0.85, 0.95), p.between(0.55, 0.65)
    p.add(
        FURNITURE,
        (0, 0, depth / 2),
        (width, height - 0.04, depth - 0.03),
        p.material(Pattern.DRAWERS, period=0.5),
    )
    p.add(FURNITURE, (0, height - 0.04, depth / 2), (width, 0.04, depth), p.material(*_BOARD))
    if p.chance(0.7):
        upper = p.material(Pattern.DRAWERS, Pattern.GRID, period=0.5)
        p.add(FURNITURE, (0, height + p.between(0.45, 0.6), 0.17), (width, p.between(0.5, 0.75), 0.34), upper)
    _clutter(p, width * 0.45, depth * 0.3, depth * 0.85, height, 2 + p.rng.randrange(5))


def night_stand(p: Piece) -> None:
    width, height, depth = p.between(0.4, 0.55), p.between(0.45, 0.65), p.between(0.35, 0.45)
    p.add(
        FURNITURE, (0, 0, depth / 2), (width, height, depth), p.material(Pattern.DRAWERS, *_BOARD, period=0.2)
    )
    if p.chance(0.8):
        _lamp(p, p.between(-0.1, 0.1), height, depth * 0.4, p.between(0.35, 0.55))
    if p.chance(0.5):
        _lying_books(p, p.between(-0.08, 0.08), height, depth * 0.7)


def shelf(p: Piece) -> None:
    """An open bookcase: two sides, a back, boards, and rows of books and things on them."""
    width, height, depth = p.between(0.7, 1.5), p.between(1.0, 2.1), p.between(0.26, 0.38)
    board = p.material(*_BOARD)
    for side in (-1, 1):
        p.add(FURNITURE, (side * (width / 2 - 0.015), 0, depth / 2), (0.03, height, depth), board)
    p.add(FURNITURE, (0, 0, 0.01), (width - 0.06, height, 0.02), board)
    levels = max(2, round(height / p.between(0.34, 0.45)))
    step = (height - 0.03) / levels
    for level in range(levels + 1):
        p.add(FURNITURE, (0, level * step, depth / 2 + 0.005), (width - 0.06, 0.03, depth - 0.02), board)
        if level == levels:
            break
        left, right = -width / 2 + 0.05, width / 2 - 0.05
        filled = p.between(0.3, 1.0) * (right - left)
        if p.chance(0.75):
            _row_of_books(p, left + filled / 2, depth * 0.55, level * step + 0.03, filled, step - 0.07)
            left += filled + 0.04
        if right - left > 0.2 and p.chance(0.7):
            _thing(p, (left + right) / 2, level * step + 0.03, depth * 0.55, min(0.8, (step - 0.06) / 0.35))


def tv_stand(p: Piece) -> None:
    width, height, depth = p.between(0.9, 1.7), p.between(0.4, 0.6), p.between(0.38, 0.5)
    p.add(
        FURNITURE, (0, 0, depth / 2), (width, height, depth), p.material(Pattern.DRAWERS, *_BOARD, period=0.4)
    )
    wide = min(p.between(0.7, 1.25), width * 0.95)
    screen = p.material(Pattern.SCREEN, glow=p.between(0.1, 0.6) if p.chance(0.4) else 0.0)
    thick = p.between(0.05, 0.1) if p.chance(0.7) else p.between(0.3, 0.36)  # a flat one, or a tube
    p.add(TV, (0, height + 0.05, depth * 0.5), (wide, wide * p.between(0.56, 0.7), thick), screen)
    p.add(TV, (0, height, depth * 0.5), (wide * 0.4, 0.06, 0.2), p.material(Pattern.PLAIN))


def floor_lamp(p: Piece) -> None:
    stand = p.material(Pattern.PLAIN)
    height = p.between(1.3, 1.7)
    p.add(OBJECTS, (0, 0, 0.15), (0.28, 0.03, 0.28), stand, shape=CYLINDER)
    p.add(OBJECTS, (0, 0, 0.15), (0.03, height, 0.03), stand, shape=CYLINDER)
    shade = p.material(Pattern.PLAIN, Pattern.STRIPES, glow=p.between(0.0, 0.9))
    p.add(OBJECTS, (0, height - 0.05, 0.15), (0.36, 0.3, 0.36), shade, shape=CYLINDER)


def plant(p: Piece) -> None:
    p.add(OBJECTS, (0, 0, 0.18), (0.3, 0.3, 0.3), p.material(*_BOARD), shape=CYLINDER)
    leaves, tall = p.material(Pattern.BLOTCHES, period=0.06), p.between(0.5, 1.1)
    for _ in range(4):
        at = (p.between(-0.12, 0.12), p.between(0.2, 0.4) * tall, p.between(0.06, 0.3))
        size = (p.between(0.15, 0.35), tall * p.between(0.5, 0.9), p.between(0.1, 0.3))
        p.add(OBJECTS, at, size, leaves, shape=ELLIPSOID, yaw=p.between(0, 3), pitch=p.between(-0.5, 0.5))


def things_on_the_floor(p: Piece) -> None:
    for i in range(1 + p.rng.randrange(3)):
        if p.chance(0.2):
            _lying_books(p, 0.45 * i, 0.0, p.between(0.1, 0.3))
        else:
            _thing(p, 0.45 * i, 0.0, p.between(0.1, 0.4), p.between(0.8, 1.8))


def _clutter(p: Piece, reach: float, back: float, front: float, height: float, count: int) -> None:
    """`count` small things or stacks of books on a top: |x| < reach, back < z < front."""
    for i in range(count):
        x = -reach + 2 * reach * (i + p.between(0.2, 0.8)) / count
        z = p.between(back, front)
        if p.chance(0.2):
            _lying_books(p, x, height, z)
        elif p.chance(0.12):
            _lamp(p, x, height, z, p.between(0.35, 0.55))
        else:
            _thing(p, x, height, z, p.between(0.4, 1.0))


def _thing(p: Piece, x: float, y: float, z: float, scale: float) -> None:
    """A box, a vase, a ball or a bowl, up to 0.3 m at scale one."""
    shape = (BOX, BOX, CYLINDER, ELLIPSOID)[p.rng.randrange(4)]
    width = scale * p.between(0.1, 0.3)
    flat = p.between(0.6, 1.0) if shape == BOX else 1.0
    tall = width if shape == ELLIPSOID and p.chance(0.5) else scale * p.between(0.08, 0.32)
    material = p.material(*_CLOTH, Pattern.COLLAGE, Pattern.GRID, period=0.06)
    yaw = p.between(-0.8, 0.8) if shape == BOX else 0.0
    p.add(OBJECTS, (x, y, z), (width, tall, width * flat), material, shape=shape, yaw=yaw)


def _lamp(p: Piece, x: float, y: float, z: float, height: float) -> None:
    p.add(OBJECTS, (x, y, z), (0.12, height * 0.6, 0.12), p.material(*_CLOTH), shape=CYLINDER)
    shade = p.material(Pattern.PLAIN, Pattern.STRIPES, glow=p.between(0.0, 0.9))
    p.add(OBJECTS, (x, y + height * 0.5, z), (0.26, height * 0.5, 0.26), shade, shape=CYLINDER)


def _row_of_books(p: Piece, x: float, z: float, y: float, width: float, tall: float = 0.3) -> None:
    spines = p.material(Pattern.SPINES, period=0.035)
    first = width * p.between(0.4, 1.0)
    p.add(BOOKS, (x - (width - first) / 2, y, z), (first, tall * p.between(0.75, 1.0), 0.2), spines)
    if width - first > 0.05:
        rest = p.material(Pattern.SPINES, period=0.035)
        p.add(BOOKS, (x + first / 2, y, z - 0.01), (width - first, tall * p.between(0.55, 0.9), 0.17), rest)


def _lying_books(p: Piece, x: float, y: float, z: float) -> None:
    for _ in range(1 + p.rng.randrange(3)):
        size = (p.between(0.18, 0.28), p.between(0.02, 0.06), p.between(0.14, 0.22))
        p.add(BOOKS, (x, y, z), size, p.material(Pattern.COVER, Pattern.PLAIN), yaw=p.between(-0.5, 0.5))
        y += size[1]
