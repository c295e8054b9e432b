"""The sample contract: what every reader hands over, checked in this one place."""

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
CLASSES_19 = (  # the train ids of Cityscapes
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CLASSES_7 = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")  # the categories of Cityscapes
CLASS_NAMES = {13: CLASSES_13, 40: CLASSES_40, 19: CLASSES_19, 7: CLASSES_7}


@dataclass(frozen=True)
class DepthScale:
    """What the numbers of a depth map mean.

    Args:
        unit: "m" of a distance along the optical axis, "px" of a disparity, "" of a number without one.
        maximum: the largest valid value; larger ones in a file are a unit mistake.
        typical: an ordinary value, where an untrained network may start.
        inverse: it grows as things come nearer, as a disparity does.
    """

    unit: str
    maximum: float
    typical: float
    inverse: bool = False


INDOORS = DepthScale("m", maximum=10.0, typical=2.5)
"""Metres, up to the range of the Kinect that recorded NYUv2."""


@dataclass(frozen=True)
class DataInfo:
    """What a data set offers: name, class names, tasks out of segmentation, depth, normal, instance, and the depth's meaning."""

    name: str
    classes: tuple[str, ...]
    tasks: tuple[str, ...]
    depth: DepthScale = INDOORS


class Source(Protocol):
    """A reader: `load(index)` returns one checked sample at the resolution of the files."""

    info: DataInfo

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample: ...


def class_names(classes: int | None, offered: tuple[int, ...], reader: str) -> tuple[str, ...]:
    """The names of a labelling with `classes` classes (None: the first offered); a DataError where `reader` does not offer it."""
    if classes is None:
        return CLASS_NAMES[offered[0]]
    if classes not in offered:
        choices = " or ".join(map(str, offered))
        raise DataError(f"classes: {reader} offers {choices} classes, found {classes}; pass classes={offered[0]}")
    return CLASS_NAMES[classes]


def make_sample(
    *,
    image: Array,
    segmentation: Array,
    depth: Array | None,
    normal: Array | None,
    classes: int,
    origin: dict[str, str],
    scale: DepthScale = INDOORS,
    instance: Array | None = None,
) -> Sample:
    """Arrays of one picture → the checked sample.

    Args:
        image: [H, W, 3], uint8 in 0..255 or floating point in 0..1.
        segmentation: [H, W], integral class ids in 0..classes-1, or IGNORE.
        depth: [H, W] in 0..scale.maximum, 0 where invalid. None for data without depth.
        normal: [H, W, 3], camera coordinates (x right, y up, z towards the camera), 0,0,0 where invalid;
            scaled to unit length here. None for data without normals.
        classes: the number of classes.
        origin: the file each array came from, by key, for the errors.
        scale: what the depth's numbers mean.
        instance: [H, W] numbers of the instances, 0 for what belongs to none. None for data without instances.

    Returns:
        image float32 [3, H, W], segmentation int64 [H, W], depth float32 [1, H, W], normal float32 [3, H, W];
        instance float32 [2, H, W]: down and right from each pixel's middle to the mean position of its
        instance's pixels, in pixels (Kendall, Gal and Cipolla, CVPR 2018), NaN where there is no instance.

    Raises:
        DataError: a wrong shape, dtype or range; the message names the file.
    """
    hint = "move the colors to the last axis" if image.ndim == 3 and image.shape[0] == 3 else "convert it to RGB"
    _require(image.ndim == 3 and image.shape[2] == 3, origin["image"], "an image [H, W, 3]", _shape(image), hint)
    size = (image.shape[0], image.shape[1])
    _require(min(size) > 0, origin["image"], "an image with at least one pixel", _shape(image), "restore the file")
    sample = {
        "image": _image(image, origin["image"]),
        "segmentation": _segmentation(segmentation, size, classes, origin["segmentation"]),
    }
    if depth is not None:
        sample["depth"] = _depth(depth, size, scale, origin["depth"])
    if normal is not None:
        sample["normal"] = _normal(normal, size, origin["normal"])
    if instance is not None:
        _require_size(instance, size, "instances", origin["instance"])
        sample["instance"] = _offsets(instance)
    return sample


def positions(height: int, width: int) -> torch.Tensor:
    """Where the middle of each pixel lies, down and right from the picture's corner. float64 [2, H, W]"""
    down, right = torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5
    return torch.stack(torch.meshgrid(down, right, indexing="ij"))


def _image(image: Array, origin: str) -> torch.Tensor:
    if image.dtype == np.uint8:
        scaled = image.astype(np.float32) / 255
    else:
        _require(image.dtype.kind == "f", origin, "an image of dtype uint8 or floating point", f"{image.dtype}", "convert it")
        scaled = image.astype(np.float32)
        _require_finite(scaled, origin, "an image")
        low, high = float(scaled.min()), float(scaled.max())
        inside = low >= -1e-4 and high <= 1 + 1e-4  # resampled files overshoot by rounding
        _require(inside, origin, "floating-point RGB in 0..1", f"{low:g}..{high:g}", "divide 0..255 values by 255")
        scaled = scaled.clip(0, 1)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))  # [3, H, W]


def _segmentation(labels: Array, size: tuple[int, int], classes: int, origin: str) -> torch.Tensor:
    _require_size(labels, size, "class ids", origin)
    _require(labels.dtype.kind in "iuf", origin, "class ids of a numeric dtype", f"{labels.dtype}", "convert them")
    if labels.dtype.kind == "f":
        _require_finite(labels, origin, "class ids")
        integral = bool((labels == np.rint(labels)).all())
        _require(integral, origin, "integral class ids", "fractions", "resample labels by the nearest pixel")
    ids = labels.astype(np.int64)
    wrong = np.unique(ids[((ids < 0) | (ids >= classes)) & (ids != IGNORE)])
    _require(
        wrong.size == 0,
        origin,
        f"class ids in 0..{classes - 1}, or {IGNORE} where unlabelled",
        f"{wrong[:8].tolist()}",
        f"check that the labels have {classes} classes",
    )
    return torch.from_numpy(np.ascontiguousarray(ids))  # [H, W]


def _depth(depth: Array, size: tuple[int, int], scale: DepthScale, origin: str) -> torch.Tensor:
    unit = f" {scale.unit}" if scale.unit else ""
    _require_size(depth, size, "depth", origin)
    kind = {"m": "depth in metres", "px": "a disparity"}.get(scale.unit, "inverse depth")
    _require(depth.dtype.kind == "f", origin, f"{kind} of a floating-point dtype", f"{depth.dtype}", "convert it")
    values = depth.astype(np.float32)
    _require_finite(values, origin, "depth")
    low, high = float(values.min()), float(values.max())
    _require(
        low >= 0 and high <= scale.maximum * (1 + 1e-4),
        origin,
        f"depth in 0..{scale.maximum:g}{unit}, 0 where invalid",
        f"{low:g}..{high:g}{unit}",
        "check the unit of the file",
    )
    return torch.from_numpy(np.ascontiguousarray(values[None]))  # [1, H, W]


def _normal(normal: Array, size: tuple[int, int], origin: str) -> torch.Tensor:
    hint = "put x, y, z on the last axis, of pictures of one size"
    _require(normal.shape == (*size, 3), origin, f"normals {[*size, 3]} like the image", _shape(normal), hint)
    _require(normal.dtype.kind == "f", origin, "normals of a floating-point dtype", f"{normal.dtype}", "scale them to -1..1")
    vectors = normal.astype(np.float32).transpose(2, 0, 1)  # [3, H, W]
    _require_finite(vectors, origin, "normals")
    length = np.sqrt(np.square(vectors).sum(axis=0, keepdims=True))  # [1, H, W]
    longest = float(length.max())
    expected = "normals of length 1, or 0,0,0 where invalid"
    _require(longest <= 1.1, origin, expected, f"length {longest:g}", "scale them, and mark invalid pixels by 0,0,0")
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return torch.from_numpy(np.ascontiguousarray(unit))


def _offsets(instance: Array) -> torch.Tensor:
    height, width = instance.shape
    where = positions(height, width).numpy().reshape(2, -1)  # [2, H·W]
    numbers, of_pixel = np.unique(instance.reshape(-1), return_inverse=True)
    of_pixel = of_pixel.reshape(-1)
    count = np.bincount(of_pixel)
    center = np.stack([np.bincount(of_pixel, weights=axis) / count for axis in where])  # [2, instances]
    offset = np.where(numbers[of_pixel] > 0, center[:, of_pixel] - where, np.nan)
    return torch.from_numpy(offset.astype(np.float32).reshape(2, height, width))


def _shape(array: Array) -> str:
    return f"shape {list(array.shape)}"


def _require_size(array: Array, size: tuple[int, int], what: str, origin: str) -> None:
    hint = "swap height and width" if array.shape == size[::-1] else "restore the pair"
    _require(array.shape == size, origin, f"{what} {list(size)} like the image", _shape(array), hint)


def _require_finite(array: Array, origin: str, what: str) -> None:
    hint = "mark invalid pixels as the format says"
    _require(bool(np.isfinite(array).all()), origin, f"{what} without NaN or infinity", "some", hint)


def _require(holds: bool, origin: str, expected: str, found: str, way_out: str) -> None:
    if not holds:
        raise DataError(f"{origin}: expected {expected}, found {found}; {way_out}")
