"""The small things that lie about: books, lamps, boxes, balls, vases."""

from __future__ import annotations

from nyuv2.data.parts import BOOKS, CLOTH, OBJECTS, Piece, Point
from nyuv2.data.raycast import BOX, CYLINDER, ELLIPSOID
from nyuv2.data.textures import Pattern


def clutter(p: Piece, top: tuple[float, float, float], height: float, count: int) -> None:
    """`count` things on a top (reach, back, front): |x| < reach, back < z < front."""
    reach, back, front = top
    for i in range(count):
        x = -reach + 2 * reach * (i + p.between(0.2, 0.8)) / count
        at = (x, height, p.between(back, front))
        if p.chance(0.2):
            lying_books(p, at)
        elif p.chance(0.12):
            lamp(p, at, p.between(0.35, 0.55))
        else:
            thing(p, at, p.between(0.4, 1.0))


def thing(p: Piece, at: Point, scale: float) -> None:
    """A box, a vase, a ball or a bowl, up to 0.3 m at scale one."""
    shape = (BOX, BOX, CYLINDER, ELLIPSOID)[p.below(4)]
    width = scale * p.between(0.1, 0.3)
    depth = width * p.between(0.6, 1.0) if shape == BOX else width
    height = width if shape == ELLIPSOID and p.chance(0.5) else scale * p.between(0.08, 0.32)
    material = p.material(*CLOTH, Pattern.COLLAGE, Pattern.GRID, period=0.06)
    yaw = p.between(-0.8, 0.8) if shape == BOX else 0.0
    p.add(OBJECTS, at, (width, height, depth), material, shape=shape, yaw=yaw)


def lamp(p: Piece, at: Point, height: float) -> None:
    """A foot and a shade that may be lit."""
    x, y, z = at
    p.add(OBJECTS, at, (0.12, height * 0.6, 0.12), p.material(*CLOTH), shape=CYLINDER)
    shade = p.material(Pattern.PLAIN, Pattern.STRIPES, glow=p.between(0.0, 0.9))
    p.add(OBJECTS, (x, y + height * 0.5, z), (0.26, height * 0.5, 0.26), shade, shape=CYLINDER)


def row_of_books(p: Piece, at: Point, width: float, tall: float) -> None:
    """Books standing side by side: one block of spines, or a lower one beside it."""
    x, y, z = at
    first = width * p.between(0.4, 1.0)
    left = (x - (width - first) / 2, y, z)
    p.add(BOOKS, left, (first, tall * p.between(0.75, 1.0), 0.2), p.material(Pattern.SPINES, period=0.035))
    if width - first > 0.05:
        size = (width - first, tall * p.between(0.55, 0.9), 0.17)
        p.add(BOOKS, (x + first / 2, y, z - 0.01), size, p.material(Pattern.SPINES, period=0.035))


def lying_books(p: Piece, at: Point) -> None:
    """A stack of one to three books."""
    x, y, z = at
    for _ in range(1 + p.below(3)):
        size = (p.between(0.18, 0.28), p.between(0.02, 0.06), p.between(0.14, 0.22))
        p.add(BOOKS, (x, y, z), size, p.material(Pattern.COVER, Pattern.PLAIN), yaw=p.between(-0.5, 0.5))
        y += size[1]
