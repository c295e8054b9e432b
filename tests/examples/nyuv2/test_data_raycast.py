"""The ray caster against closed forms: every expected number here is derived by hand from the geometry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from nyuv2.data.raycast import BOX, CYLINDER, ELLIPSOID, Camera, Floats, Hits, Solids, cast, occluded

ROOM = [  # center, half extents: a room of 4 × 2 × 6 m around the origin, walls 0.2 m thick
    ((0, -1.1, 0), (2.2, 0.1, 3.2)),
    ((0, 1.1, 0), (2.2, 0.1, 3.2)),
    ((-2.1, 0, 0), (0.1, 1.2, 3.2)),
    ((2.1, 0, 0), (0.1, 1.2, 3.2)),
    ((0, 0, -3.1), (2.2, 1.2, 0.1)),
    ((0, 0, 3.1), (2.2, 1.2, 0.1)),
]
HEIGHT, WIDTH, FOCAL = 61, 81, 50.0


def solids(*extra: tuple[int, tuple[float, float, float], tuple[float, float, float]], yaw: float = 0.0) -> Solids:
    """The room, and more solids in it that are turned by yaw about y."""
    boxes = [(BOX, center, half) for center, half in ROOM] + list(extra)
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    rotation = np.stack([np.eye(3)] * len(ROOM) + [turn] * len(extra)).astype(np.float32)
    return Solids(
        np.array([shape for shape, _, _ in boxes]),
        np.array([center for _, center, _ in boxes], np.float32),
        np.array([half for _, _, half in boxes], np.float32),
        rotation,
    )


def camera() -> Camera:
    """At the origin, looking along -z, its axis through the center of pixel (30, 40)."""
    return Camera(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), FOCAL, FOCAL, 40.5, 30.5, HEIGHT, WIDTH)


def test_depth_is_z_and_not_the_length_of_the_ray() -> None:
    hits = cast(solids(), camera())
    columns = (np.arange(WIDTH) - 40) / FOCAL
    wall = np.abs(columns * 3) < 1.99  # columns whose ray meets the far wall, 3 m away
    assert wall.sum() > 40
    np.testing.assert_allclose(hits.depth[30, wall], 3.0, rtol=1e-6)
    # A side wall at x = ±2 is met at depth 2 / |x of the ray|.
    side = np.abs(columns * 3) > 2.01
    assert side.sum() > 10
    np.testing.assert_allclose(hits.depth[30, side], 2 / np.abs(columns[side]), rtol=1e-6)


def test_normals_of_the_room_point_into_it() -> None:
    hits = cast(solids(), camera())
    np.testing.assert_array_equal(hits.normal[:, 30, 40], [0, 0, 1])  # far wall
    np.testing.assert_array_equal(hits.normal[:, 60, 40], [0, 1, 0])  # floor
    np.testing.assert_array_equal(hits.normal[:, 0, 40], [0, -1, 0])  # ceiling
    np.testing.assert_array_equal(hits.normal[:, 30, 0], [1, 0, 0])  # left wall
    np.testing.assert_array_equal(hits.normal[:, 30, 80], [-1, 0, 0])  # right wall


def test_normals_are_in_camera_coordinates() -> None:
    """A camera that looks along +x sees the room's right wall face it, and the floor still below."""
    looking_right = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]], np.float32)  # columns: right, up, back
    hits = cast(solids(), replace(camera(), rotation=looking_right))
    np.testing.assert_allclose(hits.normal[:, 30, 40], [0, 0, 1], atol=1e-7)
    np.testing.assert_allclose(hits.normal[:, 60, 40], [0, 1, 0], atol=1e-7)
    assert hits.depth[30, 40] == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [BOX, ELLIPSOID, CYLINDER])
def test_every_shape_starts_at_its_front(shape: int) -> None:
    hits = cast(solids((shape, (0, 0, -2), (0.4, 0.3, 0.5))), camera())
    assert hits.depth[30, 40] == pytest.approx(1.5, rel=1e-6)
    assert hits.solid[30, 40] == len(ROOM)
    np.testing.assert_allclose(hits.normal[:, 30, 40], [0, 0, 1], atol=1e-6)


def test_turned_box() -> None:
    """A cube of edge 2a turned by 45° shows its edge at distance 2 - a√2, faces at 45° on both sides of it."""
    hits = cast(solids((BOX, (0, 0, -2), (0.3, 0.3, 0.3)), yaw=math.pi / 4), camera())
    assert hits.depth[30, 40] == pytest.approx(2 - 0.3 * math.sqrt(2), abs=1e-5)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(hits.normal[:, 30, 38], [-half, 0, half], atol=1e-6)
    np.testing.assert_allclose(hits.normal[:, 30, 42], [half, 0, half], atol=1e-6)


def _points(hits: Hits) -> Floats:
    x, y = camera().rays()
    return np.stack([x * hits.depth, y[:, None] * hits.depth, -hits.depth])


def test_ellipsoid_satisfies_its_equation_and_gradient() -> None:
    center, half = np.array([0.1, 0.05, -2.0]), np.array([0.7, 0.4, 0.5])
    hits = cast(solids((ELLIPSOID, tuple(center), tuple(half))), camera())
    on = hits.solid == len(ROOM)
    assert on.sum() > 300
    local = (_points(hits)[:, on] - center[:, None]) / half[:, None]
    np.testing.assert_allclose(np.square(local).sum(axis=0), 1, atol=1e-4)
    gradient = local / half[:, None]
    gradient /= np.linalg.norm(gradient, axis=0)
    np.testing.assert_allclose(hits.normal[:, on], gradient, atol=1e-4)


def test_cylinder_has_a_round_side_and_a_flat_cap() -> None:
    center, half = np.array([0.0, -0.7, -2.0]), np.array([0.5, 0.2, 0.5])
    hits = cast(solids((CYLINDER, tuple(center), tuple(half))), camera())
    on = hits.solid == len(ROOM)
    local = (_points(hits) - center[:, None, None]) / half[:, None, None]
    cap = on & (hits.normal[1] > 0.999)
    side = on & ~cap
    assert cap.sum() > 50
    assert side.sum() > 50
    np.testing.assert_allclose(local[1][cap], 1, atol=1e-4)
    np.testing.assert_allclose(np.square(local[::2, side]).sum(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(hits.normal[1][side], 0)


def test_nearer_solids_hide_farther_ones_in_any_order() -> None:
    near, far = (BOX, (0, 0, -1), (0.1, 0.1, 0.1)), (BOX, (0, 0, -2), (0.5, 0.5, 0.1))
    one, other = cast(solids(near, far), camera()), cast(solids(far, near), camera())
    np.testing.assert_array_equal(one.depth, other.depth)
    assert one.solid[30, 40] == len(ROOM)
    assert other.solid[30, 40] == len(ROOM) + 1
    assert one.depth[30, 40] == pytest.approx(0.9)
    assert one.solid[30, 53] == len(ROOM) + 1  # beside the near one


def test_a_solid_behind_the_camera_or_around_its_plane_does_not_show() -> None:
    plain = cast(solids(), camera())
    behind = cast(solids((BOX, (0, 0, 1), (0.3, 0.3, 0.3)), (BOX, (1.9, 0, 0), (0.05, 0.1, 0.1))), camera())
    np.testing.assert_array_equal(plain.depth, behind.depth)


def test_an_open_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="closed room"):
        cast(solids().after(1), camera())


def test_shadow_of_a_box() -> None:
    """A light at (0, 0.9, 0) over a 0.4 m plate at height 0: its shadow on the floor at -1 reaches |x| < 0.42."""
    room = solids((BOX, (0, 0, 0), (0.2, 0.001, 0.2)))
    x = np.array([-1.0, -0.45, -0.40, 0.0, 0.40, 0.45, 1.0], np.float32)
    floor = np.stack([x, np.full_like(x, -1), np.zeros_like(x)])
    shadow = occluded(room, floor, np.array([0, 0.9, 0], np.float32))
    assert shadow.tolist() == [False, False, True, True, True, False, False]


def test_a_surface_does_not_shade_itself() -> None:
    room = solids((BOX, (0, -0.5, 0), (0.3, 0.3, 0.3)))
    top = np.array([[-0.1, 0.0, 0.2], [-0.2, -0.2, -0.2], [0.1, 0.0, -0.2]], np.float32)
    bottom = top + np.array([[0], [-0.6], [0]], np.float32)
    light = np.array([0.5, 0.9, 0.3], np.float32)
    assert not occluded(room, top, light).any()
    assert occluded(room, bottom, light).all()
