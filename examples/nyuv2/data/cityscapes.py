"""The official tree of Cityscapes: leftImg8bit, gtFine, disparity and camera, each with split/city/picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness.errors import DataError
from torchvision.datasets import Cityscapes  # type: ignore[import-untyped]

from nyuv2.data.folders import Kind, paired_files
from nyuv2.data.pixels import COLOR, GREY_8, GREY_16, read_pixels
from nyuv2.data.sample import CLASSES_7, IGNORE, Array, DataInfo, DepthScale, Sample, class_names, make_sample

_IDS = 34  # label ids are 0..33; licence plates, -1, are 255 where they are drawn at all
_FARTHEST = 80.0  # metres: about 6 pixels of disparity, of which the stereo matching's half a pixel is a twelfth
_METRES = DepthScale("m", maximum=_FARTHEST, typical=20.0)
_DISPARITY = DepthScale("px", maximum=(2**16 - 2) / 256, typical=20.0, inverse=True)
_KINDS = {
    "image": Kind("leftImg8bit", ("_leftImg8bit.png",)),
    "segmentation": Kind("gtFine", ("_gtFine_labelIds.png",)),
    "instance": Kind("gtFine", ("_gtFine_instanceIds.png",)),
    "depth": Kind("disparity", ("_disparity.png",)),
    "camera": Kind("camera", ("_camera.json",)),
}


class CityscapesTree:
    """One split of Cityscapes (Cordts et al., CVPR 2016), 2048×1024, as its archives unpack.

    Segmentation: the 34 label ids become the 19 train ids, or with 7 classes their categories; all others
    are IGNORE. Instance: offsets to the centers of the instances, whose ids are class · 1000 + number; a
    smaller id is a region of one class, or a crowd (24, 26, 33 and others), and has no offset.

    Depth, where disparity/ was unpacked (16 bits p, disparity d = (p − 1) / 256 pixels, p = 0 invalid):
    with camera/ beside it, metres b·f / d from each picture's baseline and focal length, and what is farther
    than 80 m is invalid; without, the disparity d itself, in pixels of the picture on disk whatever size is
    asked for, which papers on multi-task learning call inverse depth. d = 0, at infinity, is invalid too.
    """

    def __init__(self, root: Path, *, split: Literal["train", "val"], classes: int | None) -> None:
        names = class_names(classes, (19, 7), "the tree of Cityscapes")
        optional = {"depth": ("disparity",), "camera": ("disparity", "camera")}
        kinds = {
            key: Kind(f"{kind.folder}/{split}", kind.endings)
            for key, kind in _KINDS.items()
            if all((root / folder).is_dir() for folder in optional.get(key, ()))
        }
        tasks = tuple(task for task in ("segmentation", "depth", "instance") if task in kinds)
        self.info = DataInfo("Cityscapes", names, tasks, _METRES if "camera" in kinds else _DISPARITY)
        self._class_of = _class_table(len(names))  # [256]
        self._files = paired_files(root, kinds, depth=1)

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Sample:
        files = self._files[index]
        labels = read_pixels(files["segmentation"], GREY_8, "8-bit label ids")
        wrong = np.unique(labels[(labels >= _IDS) & (labels != 255)])
        if wrong.size:
            raise DataError(
                f"{files['segmentation']}: expected label ids in 0..{_IDS - 1}, found {wrong[:8].tolist()}; "
                "use the labelIds of the release"
            )
        return make_sample(
            image=read_pixels(files["image"], COLOR, "8-bit RGB"),
            segmentation=self._class_of[labels],
            depth=_depth(files) if "depth" in files else None,
            normal=None,
            classes=len(self.info.classes),
            origin={key: str(path) for key, path in files.items()},
            scale=self.info.depth,
            instance=_instances(files["instance"]),
        )


def _class_table(classes: int) -> Array:
    """The class of every label id as an 8-bit file has it, IGNORE where it has none. [256] int64"""
    table = np.full(256, IGNORE, np.int64)
    for label in Cityscapes.classes:
        if 0 <= label.train_id < IGNORE:
            table[label.id] = label.train_id if classes == 19 else CLASSES_7.index(label.category)
    return table


def _instances(path: Path) -> Array:
    """The instances' ids, 0 where there is none."""
    ids = read_pixels(path, GREY_16, "16-bit instance ids")
    wrong = np.unique(ids[(ids >= _IDS) & (ids < 24_000) | (ids >= _IDS * 1000)])
    if wrong.size:
        raise DataError(
            f"{path}: expected instance ids in 0..{_IDS - 1} or 24000..{_IDS * 1000 - 1}, found {wrong[:8].tolist()}; "
            "use the instanceIds of the release"
        )
    numbers: Array = np.where(ids >= 1000, ids, 0)
    return numbers


def _depth(files: dict[str, Path]) -> Array:
    """Metres where there is a camera file, pixels of disparity where there is none; 0 where invalid."""
    values = read_pixels(files["depth"], GREY_16, "16-bit grey disparity").astype(np.float32)
    disparity = np.maximum(values - 1, 0) / 256
    if "camera" not in files:
        return disparity
    product = np.float32(_baseline_times_focal_length(files["camera"]))
    metres = np.divide(product, disparity, out=np.zeros_like(disparity), where=disparity > 0)
    near: Array = np.where(metres <= _FARTHEST, metres, np.float32(0))
    return near


def _baseline_times_focal_length(path: Path) -> float:
    expected = "a JSON object with the numbers extrinsic.baseline (metres) and intrinsic.fx (pixels), both above 0"
    try:
        camera: Any = json.loads(path.read_text(encoding="utf-8"))
        product = float(camera["extrinsic"]["baseline"]) * float(camera["intrinsic"]["fx"])
        signs = float(camera["extrinsic"]["baseline"]) > 0 and math.isfinite(product) and product > 0
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: expected {expected}, found trouble ({error!r}); restore the file") from error
    if not signs:
        raise DataError(f"{path}: expected {expected}, found {camera['extrinsic']} and {camera['intrinsic']}; restore the file")
    return product
