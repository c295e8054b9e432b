"""Ray casting of boxes, ellipsoids and cylinders: exact depth and normals of a scene under a pinhole camera.

Camera coordinates are x right, y up, z towards the camera, so the ray of a pixel is (x, y, -1) and its
parameter is the depth along the optical axis. Every solid is a unit shape in its own scaled frame, hence
one transform serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
"""Shapes inscribed in [-1, 1]³ of the scaled frame; a cylinder's axis is y."""

_NEAR = 0.05  # metres: a corner nearer than this has no useful projection
_TINY = np.float32(1e-12)  # too small to change a direction, enough to keep an exact zero from the division


@dataclass(frozen=True)
class Solids:
    """N solids: shape [N], center and half extents [N, 3] in metres, rotation [N, 3, 3] world from local."""

    shape: Ints
    center: Floats
    half: Floats
    rotation: Floats

    def after(self, first: int) -> Solids:
        """All but the first ones."""
        return Solids(self.shape[first:], self.center[first:], self.half[first:], self.rotation[first:])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. rotation [3, 3], world from camera; focal lengths and principal point in pixels."""

    position: Floats
    rotation: Floats
    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int

    def rays(self) -> tuple[Floats, Floats]:
        """x of every column [W] and y of every row [H] at depth one, through the pixels' centers."""
        x = (np.arange(self.width) + 0.5 - self.cx) / self.fx
        y = (self.cy - np.arange(self.height) - 0.5) / self.fy
        return x.astype(np.float32), y.astype(np.float32)


@dataclass(frozen=True)
class Hits:
    """What the rays met.

    depth [H, W] in metres; solid [H, W], its index; normal [3, H, W] in camera coordinates; unit [3, H, W],
    the point in the solid's scaled frame, -1..1; axis [H, W], the face: the axis its local normal points
    along.
    """

    depth: Floats
    solid: Ints
    normal: Floats
    unit: Floats
    axis: Ints


def cast(solids: Solids, camera: Camera) -> Hits:
    """The first solid each pixel's ray meets. The camera stands outside the solids; each ray must meet one."""
    x, y = camera.rays()
    to_unit = (solids.rotation.transpose(0, 2, 1) @ camera.rotation) / solids.half[:, :, None]  # [N, 3, 3]
    offset = camera.position - solids.center
    origin = np.einsum("nji,nj->ni", solids.rotation, offset) / solids.half  # [N, 3]
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    solid = np.full((camera.height, camera.width), -1, np.int64)
    for index, (top, bottom, left, right) in enumerate(_windows(solids, camera)):
        if top >= bottom or left >= right:
            continue
        m = to_unit[index]
        column = m[:, 0, None] * x[left:right]  # [3, w]
        row = m[:, 1, None] * y[top:bottom] - m[:, 2, None]  # [3, h]
        near, far = _interval(int(solids.shape[index]), origin[index, :, None, None], column[:, None] + row[:, :, None])
        window = depth[top:bottom, left:right]
        hit = (near <= far) & (near > 0) & (near < window)
        np.copyto(window, near, where=hit)
        solid[top:bottom, left:right][hit] = index
    if not np.isfinite(depth).all():
        raise ValueError("solids: expected a closed room, found a ray that meets nothing")
    return _describe(solids, camera, (to_unit, origin), depth, solid)


def occluded(solids: Solids, points: Floats, light: Floats) -> npt.NDArray[np.bool_]:
    """Whether a solid lies between each point [3, P] and the light [3], in world coordinates. -> [P]"""
    # Only points inside the cone of a solid's bounding sphere, seen from the light, can lie in its shadow.
    radius = np.linalg.norm(solids.half, axis=1)
    axis = solids.center - light  # [N, 3]
    distance = np.linalg.norm(axis, axis=1)
    sine = np.minimum(radius / np.maximum(distance, _NEAR), 1)
    cosine = np.where(distance > radius, np.sqrt(1 - sine * sine), np.float32(-1))
    beam = points - light[:, None]  # [3, P]
    reach = np.sqrt(np.square(beam).sum(axis=0))
    axis /= np.maximum(distance, _NEAR)[:, None]
    inside = axis @ (beam / reach) > cosine[:, None] - 1e-3  # [N, P]
    inside &= reach > (distance - radius)[:, None]
    to_unit = solids.rotation.transpose(0, 2, 1) / solids.half[:, :, None]  # [N, 3, 3]
    blocked = np.zeros(points.shape[1], np.bool_)
    for shape, matrix, center, mask in zip(solids.shape, to_unit, solids.center, inside, strict=True):
        at = np.flatnonzero(mask & ~blocked)
        start = matrix @ (points.take(at, axis=1) - center[:, None])
        near, far = _interval(int(shape), start, matrix @ -beam.take(at, axis=1))
        # Segment parameters: a solid that ends at the point (its own) or starts at the light does not count.
        blocked[at] = (near <= far) & (near < 0.98) & (far > 1e-3)
    return blocked


def _windows(solids: Solids, camera: Camera) -> list[tuple[int, int, int, int]]:
    """Per solid: rows top..bottom and columns left..right that hold its projection (empty: not in view)."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T.astype(np.float32)  # [8, 3]
    corners = np.einsum("nij,nkj->nki", solids.rotation, signs * solids.half[:, None]) + solids.center[:, None]
    seen = (corners - camera.position) @ camera.rotation  # [N, 8, 3]
    depth = -seen[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = seen[..., 0] / depth * camera.fx + camera.cx
        v = camera.cy - seen[..., 1] / depth * camera.fy
    crossing = depth.min(axis=1) < _NEAR
    behind = depth.max(axis=1) < _NEAR

    def bounds(pixels: Any, limit: int) -> tuple[Ints, Ints]:
        low = np.where(crossing, 0, np.clip(np.nan_to_num(pixels.min(axis=1)) - 1, 0, limit))
        high = np.where(crossing, limit, np.clip(np.nan_to_num(pixels.max(axis=1)) + 2, 0, limit))
        return low.astype(np.int64), np.where(behind, 0, high).astype(np.int64)

    left, right = bounds(u, camera.width)
    top, bottom = bounds(v, camera.height)
    return list(zip(top.tolist(), bottom.tolist(), left.tolist(), right.tolist(), strict=True))


def _interval(shape: int, origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Where the rays origin + t·direction [3, ...] enter and leave the unit shape; near > far: a miss."""
    if shape == ELLIPSOID:
        return _round(origin, direction)
    if shape == BOX:
        near, far = _slab(origin, direction)
        return near.max(axis=0), far.min(axis=0)
    slab_near, slab_far = _slab(origin[1], direction[1])
    near, far = _round(origin[::2], direction[::2])
    return np.maximum(near, slab_near), np.minimum(far, slab_far)


def _slab(origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    inverse = 1 / (direction + _TINY)
    middle = -origin * inverse
    reach = np.abs(inverse)
    return np.asarray(middle - reach, np.float32), np.asarray(middle + reach, np.float32)


def _round(origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    a = np.maximum(np.square(direction).sum(axis=0), _TINY)
    middle = -(origin * direction).sum(axis=0) / a
    # |o + middle·d|² is the squared distance of the ray from the axis: no cancellation, unlike b² - 4ac.
    distance = np.square(origin + middle * direction).sum(axis=0)
    reach = np.sqrt(np.maximum(1 - distance, 0) / a)
    near = np.where(distance < 1, middle - reach, np.float32(np.inf))
    return np.asarray(near, np.float32), np.asarray(middle + reach, np.float32)


def _describe(solids: Solids, camera: Camera, frames: tuple[Floats, Floats], depth: Floats, solid: Ints) -> Hits:
    """The hits' normals and faces; frames: the camera in the solids' scaled frames, [N, 3, 3] and [N, 3]."""
    x, y = camera.rays()
    to_unit, origin = frames
    matrix = to_unit.reshape(-1, 9).T.copy().take(solid, axis=1).reshape(3, 3, *depth.shape)
    unit = matrix[:, 0] * x + matrix[:, 1] * y[:, None] - matrix[:, 2]  # [3, H, W]
    unit = unit * depth + origin.T.copy().take(solid, axis=1)
    shape = solids.shape.take(solid)
    size = np.abs(unit)
    axis = size.argmax(axis=0)
    cylinder = shape == CYLINDER
    cap = np.square(unit[1]) > np.square(unit[0]) + np.square(unit[2])
    axis = np.where(cylinder, np.where(cap, 1, np.where(size[0] > size[2], 0, 2)), axis)
    flat = (shape == BOX) | (cylinder & cap)
    gradient = np.where(flat, np.sign(unit) * (np.arange(3)[:, None, None] == axis), unit)
    gradient[1] *= flat | ~cylinder
    normal = (matrix * gradient[:, None]).sum(axis=0)  # the scaled frame's inverse transpose
    normal /= np.sqrt(np.square(normal).sum(axis=0))
    return Hits(depth, solid, normal, unit, axis)
