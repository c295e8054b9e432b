"""Materials and their procedural textures: the color of a surface under white light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import numpy.typing as npt

from nyuv2.data.raycast import CYLINDER, Camera, Floats, Hits, Ints, Solids

Color = tuple[float, float, float]


class Pattern(IntEnum):
    """Textures: up to SPINES they repeat in metres, the others are laid out once on each face."""

    PLAIN = 0
    STRIPES = auto()
    CHECKS = auto()
    DOTS = auto()
    GRID = auto()  # tiles and panels
    WOOD = auto()
    BLOTCHES = auto()
    SPINES = auto()  # of a row of books
    DRAWERS = auto()
    COVER = auto()  # of a book
    COLLAGE = auto()  # a picture without its frame
    FRAMED = auto()
    SCREEN = auto()
    PANES = auto()


@dataclass(frozen=True)
class Material:
    """A surface: a pattern of two linear RGB colors, and how it takes the light.

    `period` is in metres, `salt` gives the pattern its own random numbers, `rough` is the relative strength
    of the dirt, `gloss` that of the highlights, `glow` that of the light it gives off.
    """

    pattern: Pattern
    first: Color
    second: Color
    period: float
    salt: int
    rough: float
    gloss: float
    glow: float


_TABLE = np.random.Generator(np.random.Philox(0)).random(4096, dtype=np.float32)
_TABLE.flags.writeable = False


def _hash(i: Ints, j: Ints, salt: Ints) -> Floats:
    """A fixed random number in 0..1 for every lattice cell and salt."""
    return _TABLE.take((i * 73 + j * 1259 + salt * 31 + ((i * j) & 1023) * 7) & 4095)


def _cell(coordinate: Floats) -> Ints:
    return np.floor(coordinate).astype(np.int64)


def _noise(u: Floats, v: Floats, salt: Ints) -> Floats:
    """Value noise in 0..1: the lattice's random numbers, smoothly interpolated."""
    i, j = _cell(u), _cell(v)
    a, b = u - i.astype(np.float32), v - j.astype(np.float32)
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    near = _hash(i, j, salt) * (1 - a) + _hash(i + 1, j, salt) * a
    far = _hash(i, j + 1, salt) * (1 - a) + _hash(i + 1, j + 1, salt) * a
    return np.asarray(near + b * (far - near))


def _triangle(coordinate: Floats) -> Floats:
    """Distance to the nearest whole number."""
    return np.abs(coordinate - np.rint(coordinate))


@dataclass(frozen=True)
class _Surface:
    """P visible points that share a pattern.

    u, v [P] are in periods; s, t [P] run over the face in 0..1; extent [2, P] is the face's, in periods;
    fade [P] is 0 where the pattern is finer than the pixels; salt [P]; first, second [3, P] are the two
    colors.
    """

    u: Floats
    v: Floats
    s: Floats
    t: Floats
    extent: Floats
    fade: Floats
    salt: Ints
    first: Floats
    second: Floats

    def mix(self, share: Floats) -> Floats:
        share = 0.5 + (share - 0.5) * self.fade
        return self.first + share * (self.second - self.first)

    def choose(self, mask: npt.NDArray[np.bool_]) -> Floats:
        return self.mix(mask.astype(np.float32))

    def cells(self, i: Ints, j: Ints) -> Floats:
        """A color of its own for every cell (i, j): between the two colors, with a random tint."""
        share = _hash(i, j, self.salt)
        tint = np.stack([_hash(i, j, self.salt + 11 * k) for k in (1, 2, 3)])
        return np.asarray((self.first + share * (self.second - self.first)) * (0.25 + 1.2 * tint))

    def border(self, margin: float) -> npt.NDArray[np.bool_]:
        return np.minimum(_triangle(self.s), _triangle(self.t)) < margin


def _plain(f: _Surface) -> Floats:
    return f.first


def _stripes(f: _Surface) -> Floats:
    return f.choose(f.u % 1 < 0.5)


def _checks(f: _Surface) -> Floats:
    return f.mix(0.5 * ((f.u % 1 < 0.5).astype(np.float32) + (f.v % 1 < 0.5)))


def _dots(f: _Surface) -> Floats:
    return f.choose(np.square(f.u % 1 - 0.5) + np.square(f.v % 1 - 0.5) < 0.07)


def _grid(f: _Surface) -> Floats:
    joint = np.minimum(f.u % 1, 0.5 * f.v % 1) < 0.05
    return f.mix(0.2 * _hash(_cell(f.u), _cell(0.5 * f.v), f.salt) + 0.8 * joint.astype(np.float32))


def _wood(f: _Surface) -> Floats:
    grain = _noise(f.u * 6, f.v * 0.5, f.salt)
    return f.mix(0.6 * grain + 0.4 * ((f.u * 2 + 2 * grain) % 1))


def _blotches(f: _Surface) -> Floats:
    return f.mix(0.7 * _noise(f.u * 1.5, f.v * 1.5, f.salt) + 0.3 * _noise(f.u * 4, f.v * 4, f.salt + 5))


def _spines(f: _Surface) -> Floats:
    row = np.zeros_like(f.salt)
    place = f.u + 0.35 * _hash(_cell(f.u), row, f.salt)
    return np.asarray(f.cells(_cell(place), row) * np.where(place % 1 < 0.12 * f.fade, np.float32(0.35), 1))


def _drawers(f: _Surface) -> Floats:
    """As many equal fronts as fit the face, with joints and a knob on each."""
    count = np.maximum(np.rint(f.extent), 1)
    a, b = f.s * count[0], f.t * count[1]
    joint = (_triangle(a) < 0.03) | (_triangle(b) < 0.04)
    knob = (np.abs(a % 1 - 0.5) < 0.09) & (np.abs(b % 1 - 0.75) < 0.05)
    return np.where(knob, f.second, f.first * np.where(joint, np.float32(0.35), 1))


def _cover(f: _Surface) -> Floats:
    return np.where((f.t > 0.6) & (f.t < 0.8) & ~f.border(0.15), f.second, f.first)


def _collage(f: _Surface) -> Floats:
    """Warped cells of many colors: what hangs on walls, is printed on boxes and runs on screens."""
    warp = 2 * _noise(f.s * 3, f.t * 3, f.salt)
    colors = f.cells(_cell(f.s * 3 + warp), _cell(f.t * 3 + warp * f.t))
    return np.asarray(colors * (0.7 + 0.6 * _noise(f.s * 9, f.t * 9, f.salt + 3)))


def _framed(f: _Surface) -> Floats:
    return np.where(f.border(0.07), f.second, _collage(f))


def _screen(f: _Surface) -> Floats:
    origin = np.zeros_like(f.salt)
    return np.where(f.border(0.05), f.first * 0.2, 0.08 + 0.5 * _collage(f) * _hash(origin, origin, f.salt))


def _panes(f: _Surface) -> Floats:
    """Glass between a frame and its bars, showing a view that is lighter above a blurred horizon."""
    columns = 1 + (f.salt & 1) + (f.extent[0] > 1.6)
    rows = 1 + ((f.salt >> 1) & 1)
    bars = (_triangle(f.s * columns) < 0.05) | (_triangle(f.t * rows) < 0.04)
    origin = np.zeros_like(f.salt)
    horizon = 0.25 + 0.4 * _hash(origin, origin + 1, f.salt)
    above = np.clip((f.t - horizon + 0.25 * _noise(f.s * 5, f.t * 5, f.salt)) * 5, 0, 1)
    view = f.first * 0.4 * (1 - above) + (0.3 + 0.7 * f.first) * above
    return np.where(bars, f.second, view)


_TEXTURES: dict[Pattern, Callable[[_Surface], Floats]] = {
    Pattern.PLAIN: _plain,
    Pattern.STRIPES: _stripes,
    Pattern.CHECKS: _checks,
    Pattern.DOTS: _dots,
    Pattern.GRID: _grid,
    Pattern.WOOD: _wood,
    Pattern.BLOTCHES: _blotches,
    Pattern.SPINES: _spines,
    Pattern.DRAWERS: _drawers,
    Pattern.COVER: _cover,
    Pattern.COLLAGE: _collage,
    Pattern.FRAMED: _framed,
    Pattern.SCREEN: _screen,
    Pattern.PANES: _panes,
}


def albedo(hits: Hits, solids: Solids, materials: list[Material], camera: Camera) -> Floats:
    """Linear RGB [3, P] of every pixel under white light; P = H·W."""
    solid = hits.solid.ravel()
    axis = hits.axis.ravel()
    unit = hits.unit.reshape(3, -1)
    # The two axes of the face: (z, y), (x, z) or (x, y). A cylinder's side is unrolled along x.
    half = solids.half.T.copy().take(solid, axis=1)  # [3, P]
    turned = (solids.shape.take(solid) == CYLINDER) & (axis != 1)
    angle = np.arctan2(unit[0], unit[2]) * np.float32(1 / np.pi)
    a = np.where(turned, angle, np.where(axis == 0, unit[2], unit[0]))
    b = np.where(axis == 1, unit[2], unit[1])
    wide = np.where(axis == 0, half[2], half[0]) * np.where(turned, np.float32(np.pi), 1)
    high = np.where(axis == 1, half[2], half[1])

    table = np.array([(*m.first, *m.second, m.period, m.rough) for m in materials], np.float32).T.copy()
    first_and_second, (period, rough) = np.split(table.take(solid, axis=1), [6])
    salt = np.array([m.salt for m in materials], np.int64).take(solid)
    pattern = np.array([m.pattern for m in materials], np.int8).take(solid)
    x, y = a * wide, b * high  # metres on the face
    facing = np.maximum(np.abs(hits.normal[2].ravel()), np.float32(0.15))
    footprint = hits.depth.ravel() / (camera.fx * facing * period)  # periods per pixel
    fade = np.clip(1.5 - 2 * footprint, 0, 1)

    color = np.empty((3, solid.size), np.float32)
    for code in sorted({m.pattern for m in materials}):
        at = np.flatnonzero(pattern == code)
        surface = _Surface(
            u=x[at] / period[at],
            v=y[at] / period[at],
            s=0.5 + 0.5 * a[at],
            t=0.5 + 0.5 * b[at],
            extent=2 * np.stack([wide[at], high[at]]) / period[at],
            fade=fade[at],
            salt=salt[at],
            first=first_and_second[:3].take(at, axis=1),
            second=first_and_second[3:].take(at, axis=1),
        )
        color[:, at] = _TEXTURES[code](surface)
    dirt = _noise(x * 9, y * 9, salt + 17)
    return np.asarray(color * (1 + rough * (1.5 * dirt - 0.75)))
