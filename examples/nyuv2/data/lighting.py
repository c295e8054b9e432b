"""How a room is lit and photographed: lamps, daylight, shadows, and the noise of a cheap color camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nyuv2.data.raycast import Camera, Floats, Hits, Solids, occluded
from nyuv2.data.textures import Material, albedo


@dataclass(frozen=True)
class Lights:
    """Point lights [L, 3] with linear RGB power [L, 3], and grey ambient light. The first casts shadows."""

    position: Floats
    power: Floats
    ambient: float


@dataclass(frozen=True)
class Scene:
    """What there is to photograph: a room of `size` [3] metres, its solids with a material each, its lights.

    The first `shell` solids are the room itself, which casts no shadow into itself.
    """

    size: Floats
    solids: Solids
    materials: list[Material]
    lights: Lights
    shell: int


def photograph(scene: Scene, hits: Hits, camera: Camera, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture of the hits, uint8 [H, W, 3]; rng draws exposure, white balance, vignette and noise."""
    height, width = hits.depth.shape
    x, y = camera.rays()
    ray = np.stack(np.broadcast_arrays(x, y[:, None], np.float32(-1))).reshape(3, -1)  # [3, P]
    color = _radiance(scene, hits, camera, ray)
    off_axis = np.square(ray[:2]).sum(axis=0)
    exposure = rng.uniform(0.16, 0.3) / max(float(color.mean()), 1e-4)
    color *= exposure * (1 - rng.uniform(0, 0.5) * off_axis)
    color *= rng.uniform(0.9, 1.1, (3, 1)).astype(np.float32)
    picture = np.sqrt(np.clip(color, 0, 1)).reshape(3, height, width)  # the display's gamma, nearly
    picture = _blur(picture)
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(0.006, 0.03)
    levels: npt.NDArray[np.uint8] = np.rint(picture.clip(0, 1) * 255).transpose(1, 2, 0).astype(np.uint8)
    return levels


def _radiance(scene: Scene, hits: Hits, camera: Camera, ray: Floats) -> Floats:
    """Linear RGB [3, P] that reaches the camera: diffuse and glossy reflection, and what glows."""
    points = camera.rotation @ (ray * hits.depth.ravel()) + camera.position[:, None]  # [3, P], world
    normal = camera.rotation @ hits.normal.reshape(3, -1)
    view = camera.rotation @ (ray / -np.sqrt(np.square(ray).sum(axis=0)))
    gloss, glow = np.array([(m.gloss, m.glow) for m in scene.materials], np.float32).T[:, hits.solid.ravel()]
    lights = scene.lights
    diffuse = np.repeat((lights.ambient * (0.8 + 0.2 * normal[1]))[None], 3, axis=0)
    shine = np.zeros_like(diffuse)
    for number, (position, power) in enumerate(zip(lights.position, lights.power, strict=True)):
        toward = position[:, None] - points
        squared = np.square(toward).sum(axis=0)
        reach = 1 / (0.5 + squared)
        toward /= np.sqrt(squared)
        cosine = np.maximum((normal * toward).sum(axis=0), 0)
        if number == 0:
            reach *= _lit(scene, points, cosine, hits.depth.shape)
        diffuse += power[:, None] * (reach * cosine)
        middle = toward + view
        highlight = np.maximum((normal * middle).sum(axis=0), 0) / np.sqrt(np.square(middle).sum(axis=0))
        for _ in range(5):  # to the 32nd power
            highlight *= highlight
        shine += power[:, None] * (reach * gloss * highlight)
    light = diffuse * _openness(points, normal, scene.size) + glow
    return np.asarray(albedo(hits, scene.solids, scene.materials, camera) * light + shine)


def _lit(scene: Scene, points: Floats, cosine: Floats, size: tuple[int, ...]) -> Floats:
    """How much of the first light reaches each pixel [P], 0..1: cast at half resolution, then softened."""
    height, width = size
    rows = np.minimum(np.arange(0, height + 1, 2), height - 1)
    columns = np.minimum(np.arange(0, width + 1, 2), width - 1)
    pixels = (rows[:, None] * width + columns).ravel()
    facing = cosine.take(pixels) > 0
    seen = points.take(pixels[facing], axis=1)
    lit = np.ones(pixels.size, np.float32)
    lit[facing] = ~occluded(scene.solids.after(scene.shell), seen, scene.lights.position[0])
    fine = np.repeat(np.repeat(lit.reshape(len(rows), len(columns)), 2, axis=0), 2, axis=1)
    fine = 0.5 * (fine[:-1] + fine[1:])
    fine = 0.5 * (fine[:, :-1] + fine[:, 1:])
    return np.asarray(fine[:height, :width].reshape(-1))


def _openness(points: Floats, normal: Floats, room: Floats) -> Floats:
    """Ambient occlusion by the room itself [P]: light fades near the walls a point does not lie on."""
    openness = np.ones(points.shape[1], np.float32)
    for axis in range(3):
        aside = 0.35 * (1 - np.abs(normal[axis]))
        for distance in (points[axis], room[axis] - points[axis]):
            openness *= 1 - aside * np.exp(-4 * np.maximum(distance, 0))
    return openness


def _blur(picture: Floats) -> Floats:
    """The lens: a light 3×3 blur of [3, H, W]."""
    wide = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = 0.2 * (wide[:, :-2] + wide[:, 2:]) + 0.6 * wide[:, 1:-1]
    return np.asarray(0.2 * (rows[:, :, :-2] + rows[:, :, 2:]) + 0.6 * rows[:, :, 1:-1])
