"""How the rooms look: procedural textures, lamps and daylight, shadows, and the sensor's noise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import numpy.typing as npt

from nyuv2.data.raycast import CYLINDER, Camera, Floats, Hits, Ints, Solids, occluded

Color = tuple[float, float, float]


class Pattern(IntEnum):
    """Textures. The first eight repeat in metres; the others are laid out once on each face."""

    PLAIN = 0
    STRIPES = auto()
    CHECKS = auto()
    DOTS = auto()
    GRID = auto()  # tiles and panels
    WOOD = auto()
    BLOTCHES = auto()
    SPINES = auto()  # a row of books
    DRAWERS = auto()
    COVER = auto()  # a book's
    COLLAGE = auto()  # a picture without its frame
    FRAMED = auto()
    SCREEN = auto()
    PANES = auto()


@dataclass(frozen=True)
class Material:
    """A surface: pattern in two linear RGB colors, period in metres, salt (its own random numbers), relative strength
    of its dirt, gloss of its highlights and the light it gives off."""

    pattern: Pattern
    first: Color
    second: Color
    period: float
    salt: int
    rough: float
    gloss: float
    glow: float


@dataclass(frozen=True)
class Lights:
    """Point lights [L, 3] with linear RGB power [L, 3], and the ambient light [3]. The first light casts shadows."""

    position: Floats
    power: Floats
    ambient: Floats


_TABLE = np.random.Generator(np.random.Philox(0)).random(4096, dtype=np.float32)
_TABLE.flags.writeable = False


def _hash(i: Ints, j: Ints, salt: Ints) -> Floats:
    """A fixed random number in 0..1 for every lattice cell and salt."""
    return _TABLE[(i * 73 + j * 1259 + salt * 31 + ((i * j) & 1023) * 7) & 4095]


def _noise(u: Floats, v: Floats, salt: Ints) -> Floats:
    """Value noise in 0..1: the lattice's random numbers, smoothly interpolated."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i, j = i.astype(np.int64), j.astype(np.int64)
    near = _hash(i, j, salt) * (1 - a) + _hash(i + 1, j, salt) * a
    far = _hash(i, j + 1, salt) * (1 - a) + _hash(i + 1, j + 1, salt) * a
    return near * (1 - b) + far * b


@dataclass(frozen=True)
class _Surface:
    """The P visible points of one pattern. u, v [P] in periods; s, t [P] in 0..1 over the face; extent [2, P] of the
    face in periods; fade [P] is 0 where the pattern is finer than the pixels."""

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

    def cells(self, i: Ints, j: Ints) -> Floats:
        """A color of its own for every cell (i, j): between the two colors, with a random tint."""
        share = _hash(i, j, self.salt)
        tint = np.stack([_hash(i, j, self.salt + 11 * k) for k in (1, 2, 3)])
        return (self.first + share * (self.second - self.first)) * (0.25 + 1.2 * tint)

    def border(self, margin: float) -> npt.NDArray[np.bool_]:
        return np.minimum(np.minimum(self.s, 1 - self.s), np.minimum(self.t, 1 - self.t)) < margin


def _texture(pattern: Pattern, f: _Surface) -> Floats:
    """Linear RGB [3, P] of a pattern at its points."""
    if pattern == Pattern.PLAIN:
        return f.first
    if pattern == Pattern.STRIPES:
        return f.mix((f.u % 1 < 0.5).astype(np.float32))
    if pattern == Pattern.CHECKS:
        return f.mix(0.5 * (f.u % 1 < 0.5) + 0.5 * (f.v % 1 < 0.5).astype(np.float32))
    if pattern == Pattern.DOTS:
        return f.mix((np.square(f.u % 1 - 0.5) + np.square(f.v % 1 - 0.5) < 0.07).astype(np.float32))
    if pattern == Pattern.GRID:
        joint = np.minimum(f.u % 1, (0.5 * f.v) % 1) < 0.05
        return f.mix(
            0.2 * _hash(np.floor(f.u).astype(np.int64), np.floor(0.5 * f.v).astype(np.int64), f.salt)
            + 0.8 * joint
        )
    if pattern == Pattern.WOOD:
        grain = _noise(f.u * 6, f.v * 0.5, f.salt)
        return f.mix(0.6 * grain + 0.4 * ((f.u * 2 + 2 * grain) % 1))
    if pattern == Pattern.BLOTCHES:
        return f.mix(0.7 * _noise(f.u * 1.5, f.v * 1.5, f.salt) + 0.3 * _noise(f.u * 4, f.v * 4, f.salt + 5))
    if pattern == Pattern.SPINES:
        place = f.u + 0.35 * _hash(np.floor(f.u).astype(np.int64), 0 * f.salt, f.salt)
        color = f.cells(np.floor(place).astype(np.int64), 0 * f.salt)
        return color * np.where(place % 1 < 0.12 * f.fade, 0.35, 1.0)
    if pattern == Pattern.DRAWERS:
        return _drawers(f)
    if pattern == Pattern.COVER:
        return np.where((f.t > 0.6) & (f.t < 0.8) & ~f.border(0.15), f.second, f.first)
    if pattern == Pattern.PANES:
        return _panes(f)
    collage = _collage(f)
    if pattern == Pattern.COLLAGE:
        return collage
    frame = f.border(0.07)
    if pattern == Pattern.FRAMED:
        return np.where(frame, f.second, collage)
    return np.where(frame, f.first * 0.2, 0.08 + 0.5 * collage * _hash(0 * f.salt, 0 * f.salt, f.salt))


def _drawers(f: _Surface) -> Floats:
    """As many equal fronts as fit the face, with joints and a knob on each."""
    count = np.maximum(np.rint(f.extent), 1)
    a, b = f.s * count[0] % 1, f.t * count[1] % 1
    joint = (np.minimum(a, 1 - a) < 0.03) | (np.minimum(b, 1 - b) < 0.04)
    knob = (np.abs(a - 0.5) < 0.09) & (np.abs(b - 0.75) < 0.05)
    return np.where(knob, f.second, f.first * np.where(joint, 0.35, 1.0))


def _collage(f: _Surface) -> Floats:
    """Warped cells of many colors: what hangs on walls, is printed on boxes and runs on screens."""
    warp = _noise(f.s * 3, f.t * 3, f.salt)
    i = np.floor(f.s * 3 + 2 * warp).astype(np.int64)
    j = np.floor(f.t * 3 + 2 * warp * f.t).astype(np.int64)
    return f.cells(i, j) * (0.7 + 0.6 * _noise(f.s * 9, f.t * 9, f.salt + 3))


def _panes(f: _Surface) -> Floats:
    """Glass between a frame and its bars, showing a view that is lighter above a blurred horizon."""
    columns = 1 + (f.salt & 1) + (f.extent[0] > 1.6)
    rows = 1 + ((f.salt >> 1) & 1)
    a, b = f.s * columns % 1, f.t * rows % 1
    bars = (np.minimum(a, 1 - a) < 0.05) | (np.minimum(b, 1 - b) < 0.04)
    horizon = 0.25 + 0.4 * _hash(0 * f.salt, 1 + 0 * f.salt, f.salt)
    above = np.clip((f.t - horizon + 0.25 * _noise(f.s * 5, f.t * 5, f.salt)) * 5, 0, 1)
    view = f.first * 0.4 * (1 - above) + (0.3 + 0.7 * f.first) * above
    return np.where(bars, f.second, view)


def _albedo(hits: Hits, solids: Solids, materials: list[Material], camera: Camera) -> tuple[Floats, Ints]:
    """Linear RGB [3, P] of every pixel under white light, and the solid of every pixel [P]."""
    solid = hits.solid.ravel()
    axis = hits.axis.ravel()
    unit = hits.unit.reshape(3, -1)
    across = np.where(axis == 0, 2, 0)  # the face's two axes: (z, y), (x, z) or (x, y)
    along = np.where(axis == 1, 2, 1)
    half = solids.half[solid].T  # [3, P]
    pixels = np.arange(solid.size)
    a, b = unit[across, pixels], unit[along, pixels]
    wide, high = half[across, pixels], half[along, pixels]
    turned = (solids.shape[solid] == CYLINDER) & (axis != 1)
    angle = np.arctan2(unit[0], unit[2])
    a = np.where(turned, angle * np.float32(1 / np.pi), a)
    wide = np.where(turned, wide * np.float32(np.pi), wide)

    period = np.array([m.period for m in materials], np.float32)[solid]
    salt = np.array([m.salt for m in materials], np.int64)[solid]
    rough = np.array([m.rough for m in materials], np.float32)[solid]
    first = np.array([m.first for m in materials], np.float32).T[:, solid]
    second = np.array([m.second for m in materials], np.float32).T[:, solid]
    pattern = np.array([m.pattern for m in materials], np.int64)[solid]
    facing = np.maximum(np.abs(hits.normal[2].ravel()), 0.15)
    footprint = hits.depth.ravel() / (camera.fx * facing * period)  # periods per pixel
    fade = np.clip(1.5 - 2 * footprint, 0, 1)

    color = np.empty((3, solid.size), np.float32)
    for code in np.unique(pattern):
        at = np.flatnonzero(pattern == code)
        surface = _Surface(
            u=(a[at] * wide[at]) / period[at], v=(b[at] * high[at]) / period[at], s=0.5 + 0.5 * a[at],
            t=0.5 + 0.5 * b[at], extent=2 * np.stack([wide[at], high[at]]) / period[at], fade=fade[at],
            salt=salt[at], first=first[:, at], second=second[:, at],
        )  # fmt: skip
        color[:, at] = _texture(Pattern(code), surface)
    dirt = _noise(a * wide * 5, b * high * 5, salt + 17) + 0.5 * _noise(
        a * wide * 19, b * high * 19, salt + 23
    )
    return color * (1 + rough * (dirt - 0.75)), solid


def _shadow(hits: Hits, solids: Solids, camera: Camera, points: Floats, light: Floats) -> Floats:
    """How much of the first light reaches each pixel [H, W], 0..1: cast at half resolution, softened in between."""
    height, width = hits.depth.shape
    rows = np.minimum(np.arange(0, height + 1, 2), height - 1)
    columns = np.minimum(np.arange(0, width + 1, 2), width - 1)
    coarse = points.reshape(3, height, width)[:, rows[:, None], columns]
    blocked = occluded(solids, coarse.reshape(3, -1), light)
    lit = 1 - blocked.reshape(len(rows), len(columns)).astype(np.float32)
    fine = np.repeat(np.repeat(lit, 2, axis=0), 2, axis=1)
    smooth = 0.5 * (fine[:-1] + fine[1:])
    smooth = 0.5 * (smooth[:, :-1] + smooth[:, 1:])
    return smooth[:height, :width]


def photograph(
    hits: Hits, solids: Solids, materials: list[Material], lights: Lights, camera: Camera, room: Floats,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:  # fmt: skip
    """The picture a cheap color camera takes of the hits: uint8 [H, W, 3], sRGB-like.

    room [3] is the size of the room, for the darkening of its corners; rng draws exposure and noise.
    """
    height, width = hits.depth.shape
    x, y = camera.rays()
    albedo, solid = _albedo(hits, solids, materials, camera)
    ray = np.stack(np.broadcast_arrays(x, y[:, None], np.float32(-1))).reshape(3, -1)
    points = camera.rotation @ (ray * hits.depth.ravel()) + camera.position[:, None]  # [3, P], world
    normal = camera.rotation @ hits.normal.reshape(3, -1)
    view = camera.rotation @ (-ray / np.sqrt(np.square(ray).sum(axis=0)))
    gloss = np.array([m.gloss for m in materials], np.float32)[solid]
    glow = np.array([m.glow for m in materials], np.float32)[solid]

    light = lights.ambient[:, None] * (0.8 + 0.2 * normal[1])  # [3, P]
    shine = np.zeros_like(light)
    shadow = _shadow(hits, solids, camera, points, lights.position[0]).ravel()
    for number, (position, power) in enumerate(zip(lights.position, lights.power, strict=True)):
        toward = position[:, None] - points
        squared = np.square(toward).sum(axis=0)
        toward = toward / np.sqrt(squared)
        reach = (shadow if number == 0 else np.float32(1)) / (0.5 + squared)
        light += power[:, None] * (reach * np.maximum((normal * toward).sum(axis=0), 0))
        middle = toward + view
        cosine = (normal * middle).sum(axis=0) / np.sqrt(np.square(middle).sum(axis=0))
        shine += power[:, None] * (reach * gloss * np.maximum(cosine, 0) ** 32)
    color = albedo * (light * _corners(points, normal, room) + glow) + shine

    exposure = rng.uniform(0.16, 0.3) / max(float(color.mean()), 1e-4)
    away = np.square(ray[:2]).sum(axis=0)
    color *= np.float32(exposure) * (1 - np.float32(rng.uniform(0, 0.5)) * away)
    cast = rng.uniform(0.9, 1.1, (3, 1)).astype(np.float32)  # imperfect white balance
    picture = np.sqrt(np.maximum(color * cast, 0)).reshape(3, height, width)
    picture = _blur(np.minimum(picture, 1))
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    picture += noise * np.float32(rng.uniform(0.006, 0.03))
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def _corners(points: Floats, normal: Floats, room: Floats) -> Floats:
    """Ambient occlusion of the room itself [P]: light fades near the surfaces a point does not lie on."""
    open_sky = np.ones(points.shape[1], np.float32)
    for axis in range(3):
        aside = 1 - np.abs(normal[axis])
        for distance in (points[axis], room[axis] - points[axis]):
            open_sky *= 1 - np.float32(0.35) * aside * np.exp(np.float32(-4) * np.maximum(distance, 0))
    return open_sky


def _blur(picture: Floats) -> Floats:
    """The lens: a light 3×3 binomial blur of [3, H, W]."""
    wide = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = 0.2 * (wide[:, :-2] + wide[:, 2:]) + 0.6 * wide[:, 1:-1]
    return np.asarray(0.2 * (rows[:, :, :-2] + rows[:, :, 2:]) + 0.6 * rows[:, :, 1:-1], np.float32)
