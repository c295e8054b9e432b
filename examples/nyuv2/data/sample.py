"""The sample contract: what every NYUv2 reader hands over, checked in this one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from harness.errors import DataError

Array = npt.NDArray[Any]
Sample = dict[str, torch.Tensor]

IGNORE = 255
"""The class id of an unlabelled pixel."""

MAX_DEPTH = 10.0
"""Metres: the range of the Kinect that recorded NYUv2. Larger values are a unit mistake."""

CLASSES_13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv",
    "wall", "window",
)  # fmt: skip
CLASSES_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip
CLASS_NAMES = {13: CLASSES_13, 40: CLASSES_40}


@dataclass(frozen=True)
class DataInfo:
    """What a data set offers: its name, its class names, and its tasks out of segmentation, depth, normal."""

    name: str
    classes: tuple[str, ...]
    tasks: tuple[str, ...]


class Source(Protocol):
    """A reader: `load(index)` returns one checked sample at the resolution of the files."""

    info: DataInfo

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample: ...


def class_names(classes: int, offered: tuple[int, ...], reader: str) -> tuple[str, ...]:
    """The class names of a labelling with `classes` classes; a DataError where `reader` does not offer it."""
    if classes not in offered:
        choices = " or ".join(map(str, offered))
        raise DataError(f"classes: {reader} offers {choices} classes, found {classes}; pass classes={offered[0]}")
    return CLASS_NAMES[classes]


def make_sample(
    *,
    image: Array,
    segmentation: Array,
    depth: Array,
    normal: Array | None,
    classes: int,
    origin: dict[str, str],
) -> Sample:
    """Arrays of one picture → the checked sample.

    Args:
        image: [H, W, 3], uint8 in 0..255 or floating point in 0..1.
        segmentation: [H, W], integral class ids in 0..classes-1, or IGNORE.
        depth: [H, W], metres along the optical axis in 0..MAX_DEPTH, 0 where invalid.
        normal: [H, W, 3], camera coordinates (x right, y up, z towards the camera), 0,0,0 where invalid;
            scaled to unit length here. None for data without normals.
        classes: the number of classes.
        origin: the file each array came from, by key, for the errors.

    Returns:
        image float32 [3, H, W], segmentation int64 [H, W], depth float32 [1, H, W], normal float32 [3, H, W].

    Raises:
        DataError: a wrong shape, dtype or range; the message names the file.
    """
    _require(image.ndim == 3 and image.shape[2] == 3, origin["image"], "an image [H, W, 3]", _shape(image))
    height, width = image.shape[:2]
    _require(min(height, width) > 0, origin["image"], "an image with at least one pixel", _shape(image))
    sample = {
        "image": _image(image, origin["image"]),
        "segmentation": _segmentation(segmentation, (height, width), classes, origin["segmentation"]),
        "depth": _depth(depth, (height, width), origin["depth"]),
    }
    if normal is not None:
        sample["normal"] = _normal(normal, (height, width), origin["normal"])
    return sample


def _image(image: Array, origin: str) -> torch.Tensor:
    if image.dtype == np.uint8:
        scaled = image.astype(np.float32) / 255
    else:
        _require(image.dtype.kind == "f", origin, "an image of dtype uint8 or floating point", f"{image.dtype}")
        scaled = image.astype(np.float32)
        _require_finite(scaled, origin, "an image")
        low, high = float(scaled.min()), float(scaled.max())
        inside = low >= -1e-4 and high <= 1 + 1e-4  # resampled files overshoot by rounding
        _require(inside, origin, "floating-point RGB in 0..1", f"{low:g}..{high:g}; divide 0..255 values by 255")
        scaled = scaled.clip(0, 1)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))  # [3, H, W]


def _segmentation(labels: Array, size: tuple[int, int], classes: int, origin: str) -> torch.Tensor:
    _require(labels.shape == size, origin, f"class ids {list(size)} like the image", _shape(labels))
    _require(labels.dtype.kind in "iuf", origin, "class ids of a numeric dtype", f"{labels.dtype}")
    if labels.dtype.kind == "f":
        _require_finite(labels, origin, "class ids")
        _require(bool((labels == np.rint(labels)).all()), origin, "integral class ids", "fractions")
    ids = labels.astype(np.int64)
    wrong = np.unique(ids[((ids < 0) | (ids >= classes)) & (ids != IGNORE)])
    _require(
        wrong.size == 0,
        origin,
        f"class ids in 0..{classes - 1}, or {IGNORE} where unlabelled",
        f"{wrong[:8].tolist()}; check that the labels have {classes} classes",
    )
    return torch.from_numpy(np.ascontiguousarray(ids))  # [H, W]


def _depth(depth: Array, size: tuple[int, int], origin: str) -> torch.Tensor:
    _require(depth.shape == size, origin, f"depth {list(size)} like the image", _shape(depth))
    _require(depth.dtype.kind == "f", origin, "depth in metres of a floating-point dtype", f"{depth.dtype}")
    metres = depth.astype(np.float32)
    _require_finite(metres, origin, "depth")
    low, high = float(metres.min()), float(metres.max())
    _require(
        low >= 0 and high <= MAX_DEPTH * (1 + 1e-4),
        origin,
        f"depth in 0..{MAX_DEPTH:g} m, 0 where invalid",
        f"{low:g}..{high:g} m; check the unit of the file",
    )
    return torch.from_numpy(np.ascontiguousarray(metres[None]))  # [1, H, W]


def _normal(normal: Array, size: tuple[int, int], origin: str) -> torch.Tensor:
    _require(normal.shape == (*size, 3), origin, f"normals {[*size, 3]} like the image", _shape(normal))
    _require(normal.dtype.kind == "f", origin, "normals of a floating-point dtype", f"{normal.dtype}")
    vectors = normal.astype(np.float32).transpose(2, 0, 1)  # [3, H, W]
    _require_finite(vectors, origin, "normals")
    length = np.sqrt(np.square(vectors).sum(axis=0, keepdims=True))  # [1, H, W]
    longest = float(length.max())
    _require(longest <= 1.1, origin, "normals of length 1, or 0,0,0 where invalid", f"length {longest:g}")
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return torch.from_numpy(np.ascontiguousarray(unit))


def _shape(array: Array) -> str:
    return f"shape {list(array.shape)}"


def _require_finite(array: Array, origin: str, what: str) -> None:
    _require(bool(np.isfinite(array).all()), origin, f"{what} without NaN or infinity", "some")


def _require(holds: bool, origin: str, expected: str, found: str) -> None:
    if not holds:
        raise DataError(f"{origin}: expected {expected}, found {found}")
