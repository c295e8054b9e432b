"""The ten classes as drawings: parts in the order they are painted, each a shape with a place, a size and a color."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ELLIPSE, BOX, TRIANGLE = range(3)
BODY, SECOND, DARK, GLASS, LIGHT = range(5)  # which of a drawing's colors a part has

Floats = npt.NDArray[np.float64]


class Part(NamedTuple):
    """A shape in the drawing's frame: x to the right and y down, both about -1..1; a triangle's tip points up."""

    shape: int
    x: float
    y: float
    half_width: float
    half_height: float
    color: int = BODY
    angle: float = 0.0  # radians, clockwise


def coverage(parts: tuple[Part, ...], x: Floats, y: Floats, pixel: float) -> Floats:
    """How much of every pixel each part covers, 0..1. x, y [H, W] in the drawing's frame -> [P, H, W]"""
    shape, cx, cy, rx, ry, _, angle = (column[:, None, None] for column in np.array(parts).T)
    dx, dy = x - cx, y - cy
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    ellipse = (np.sqrt((u / rx) ** 2 + (v / ry) ** 2) - 1) * np.minimum(rx, ry)
    box = np.maximum(np.abs(u) - rx, np.abs(v) - ry)
    slope = (2 * ry * np.abs(u) - rx * (v + ry)) / np.sqrt(4 * ry**2 + rx**2)
    outside: Floats = np.select([shape == ELLIPSE, shape == BOX], [ellipse, box], np.maximum(slope, v - ry))
    return np.clip(0.5 - outside / pixel, 0, 1)


def _wheels(*places: float) -> tuple[Part, ...]:
    return tuple(Part(ELLIPSE, x, 0.42, 0.17, 0.17, DARK) for x in places)


def _legs(half_width: float, top: float, *places: float) -> tuple[Part, ...]:
    return tuple(Part(BOX, x, (top + 0.8) / 2, half_width, (0.8 - top) / 2) for x in places)


DRAWINGS: tuple[tuple[Part, ...], ...] = (
    (  # airplane
        Part(TRIANGLE, -0.72, -0.22, 0.16, 0.24, SECOND, -0.4),
        Part(ELLIPSE, 0.0, 0.0, 0.9, 0.16),
        Part(BOX, -0.12, 0.3, 0.12, 0.36, SECOND, 0.6),
        Part(BOX, -0.05, -0.28, 0.09, 0.24, SECOND, -0.6),
        Part(ELLIPSE, 0.68, -0.04, 0.1, 0.06, GLASS),
    ),
    (  # automobile
        Part(ELLIPSE, -0.05, -0.05, 0.5, 0.32),
        Part(ELLIPSE, -0.05, -0.05, 0.38, 0.21, GLASS),
        Part(BOX, 0.0, 0.18, 0.85, 0.2),
        *_wheels(-0.48, 0.48),
        Part(ELLIPSE, 0.8, 0.12, 0.07, 0.06, LIGHT),
    ),
    (  # bird
        Part(TRIANGLE, 0.78, -0.3, 0.08, 0.14, LIGHT, 1.6),
        Part(BOX, -0.02, 0.55, 0.03, 0.25, DARK),
        Part(BOX, 0.14, 0.55, 0.03, 0.25, DARK),
        Part(TRIANGLE, -0.62, 0.16, 0.14, 0.32, SECOND, -1.2),
        Part(ELLIPSE, 0.0, 0.08, 0.5, 0.28, BODY, -0.3),
        Part(ELLIPSE, 0.5, -0.28, 0.2, 0.19),
        Part(ELLIPSE, -0.08, 0.02, 0.3, 0.15, SECOND, 0.3),
        Part(ELLIPSE, 0.56, -0.32, 0.05, 0.05, DARK),
    ),
    (  # cat
        Part(TRIANGLE, -0.34, -0.46, 0.2, 0.26),
        Part(TRIANGLE, 0.34, -0.46, 0.2, 0.26),
        Part(ELLIPSE, 0.0, 0.05, 0.6, 0.5),
        Part(ELLIPSE, -0.24, -0.05, 0.1, 0.12, LIGHT),
        Part(ELLIPSE, 0.24, -0.05, 0.1, 0.12, LIGHT),
        Part(ELLIPSE, -0.24, -0.05, 0.04, 0.1, DARK),
        Part(ELLIPSE, 0.24, -0.05, 0.04, 0.1, DARK),
        Part(TRIANGLE, 0.0, 0.2, 0.08, 0.06, DARK, np.pi),
    ),
    (  # deer
        Part(BOX, 0.52, -0.68, 0.03, 0.2, DARK, -0.4),
        Part(BOX, 0.66, -0.68, 0.03, 0.2, DARK, 0.4),
        *_legs(0.045, 0.1, -0.48, -0.34, 0.16, 0.3),
        Part(ELLIPSE, -0.08, 0.05, 0.5, 0.22),
        Part(BOX, 0.42, -0.2, 0.09, 0.3, BODY, 0.4),
        Part(ELLIPSE, 0.64, -0.45, 0.2, 0.11, BODY, 0.2),
        Part(ELLIPSE, -0.56, -0.02, 0.08, 0.1, LIGHT),
    ),
    (  # dog
        Part(ELLIPSE, 0.0, 0.0, 0.5, 0.5),
        Part(ELLIPSE, -0.52, 0.08, 0.15, 0.42, SECOND, 0.15),
        Part(ELLIPSE, 0.52, 0.08, 0.15, 0.42, SECOND, -0.15),
        Part(ELLIPSE, 0.0, 0.26, 0.26, 0.22, LIGHT),
        Part(ELLIPSE, 0.0, 0.16, 0.1, 0.08, DARK),
        Part(ELLIPSE, -0.2, -0.14, 0.07, 0.07, DARK),
        Part(ELLIPSE, 0.2, -0.14, 0.07, 0.07, DARK),
    ),
    (  # frog
        Part(ELLIPSE, -0.6, 0.42, 0.32, 0.15, SECOND),
        Part(ELLIPSE, 0.6, 0.42, 0.32, 0.15, SECOND),
        Part(ELLIPSE, -0.32, -0.22, 0.18, 0.18),
        Part(ELLIPSE, 0.32, -0.22, 0.18, 0.18),
        Part(ELLIPSE, 0.0, 0.18, 0.65, 0.38),
        Part(ELLIPSE, -0.32, -0.24, 0.08, 0.08, DARK),
        Part(ELLIPSE, 0.32, -0.24, 0.08, 0.08, DARK),
        Part(BOX, 0.0, 0.26, 0.4, 0.03, DARK),
    ),
    (  # horse
        Part(ELLIPSE, -0.68, 0.18, 0.08, 0.34, DARK, 0.3),
        *_legs(0.07, 0.1, -0.48, -0.3, 0.16, 0.34),
        Part(ELLIPSE, -0.08, 0.02, 0.56, 0.27),
        Part(BOX, 0.36, -0.32, 0.1, 0.34, DARK, 0.5),
        Part(BOX, 0.44, -0.26, 0.12, 0.34, BODY, 0.5),
        Part(ELLIPSE, 0.7, -0.46, 0.26, 0.13, BODY, 0.5),
    ),
    (  # ship
        Part(BOX, 0.3, -0.42, 0.09, 0.26, DARK),
        Part(BOX, -0.05, -0.3, 0.03, 0.45, DARK),
        Part(BOX, 0.08, 0.02, 0.46, 0.2, LIGHT),
        Part(TRIANGLE, 0.62, 0.36, 0.36, 0.18, BODY, np.pi),
        Part(TRIANGLE, -0.62, 0.36, 0.3, 0.18, BODY, np.pi),
        Part(BOX, 0.0, 0.36, 0.62, 0.18),
        Part(BOX, 0.0, 0.22, 0.9, 0.04, SECOND),
    ),
    (  # truck
        Part(BOX, -0.26, -0.12, 0.58, 0.42, SECOND),
        Part(BOX, 0.6, 0.06, 0.26, 0.28),
        Part(BOX, 0.68, -0.06, 0.14, 0.12, GLASS),
        Part(BOX, 0.0, 0.32, 0.86, 0.06, DARK),
        *_wheels(-0.6, -0.24, 0.58),
    ),
)
"""By index, as `images.CLASSES`."""
