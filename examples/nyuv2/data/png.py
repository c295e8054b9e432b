"""Folders of pictures: {train,test}/{rgb,depth,seg13,seg40,normal}/NAME.{jpg,png}."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from harness.errors import DataError

from nyuv2.data.folders import Kind, paired_files
from nyuv2.data.pixels import COLOR, GREY_8, GREY_16, read_pixels
from nyuv2.data.sample import IGNORE, Array, DataInfo, Sample, class_names, make_sample

_MILLIMETRES = 1000
_OTHERPROP = 39  # of the 40 classes


class PngFolder:
    """One split of a PNG folder.

    rgb is 8-bit RGB; depth is 16-bit grey in millimetres, 0 where invalid; seg13 and seg40 are 8-bit class
    ids from 0, 255 where unlabelled. The common release folds the unlabelled pixels of its training split
    into class 39 of seg40 and class 6 of seg13, so with `folded` a pixel whose seg40 is 39 becomes IGNORE.
    Where there is a folder normal, it holds 8-bit RGB in which v is the coordinate v / 127.5 − 1 (x right, y
    up, z towards the camera); (127, 127, 127) and (128, 128, 128), the two ways to write 0,0,0, are invalid.
    """

    def __init__(self, split: Path, *, folded: bool, classes: int | None) -> None:
        names = class_names(classes, (13, 40), "a PNG folder")
        kinds = {
            "image": Kind("rgb", (".jpg", ".jpeg", ".png")),
            "segmentation": Kind(f"seg{len(names)}", (".png",)),
            "depth": Kind("depth", (".png",)),
        }
        if (split / "normal").is_dir():
            kinds["normal"] = Kind("normal", (".png",))
        self.info = DataInfo("NYUv2 (image folder)", names, tuple(key for key in kinds if key != "image"))
        self._folded = folded
        if folded and len(names) == 13:
            if (split / "seg40").is_dir():
                kinds["seg40"] = Kind("seg40", (".png",))
            else:
                warnings.warn(
                    f"{split}: expected seg40/, which tells unlabelled pixels from objects in the training "
                    "split, found none; the unlabelled pixels will be trained on as objects",
                    stacklevel=3,
                )
                self._folded = False
        self._files = paired_files(split, kinds)

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Sample:
        files = self._files[index]
        labels = read_pixels(files["segmentation"], GREY_8, "8-bit class ids")
        if self._folded:
            fine = files.get("seg40")
            folded = labels if fine is None else read_pixels(fine, GREY_8, "8-bit class ids")
            if folded.shape != labels.shape:
                raise DataError(
                    f"{fine}: expected shape {list(labels.shape)} like {files['segmentation']}, "
                    f"found {list(folded.shape)}; restore the pair"
                )
            labels = np.where(folded == _OTHERPROP, IGNORE, labels)
        depth = read_pixels(files["depth"], GREY_16, "16-bit grey depth in millimetres")
        normal = read_pixels(files["normal"], COLOR, "normals as 8-bit RGB") if "normal" in files else None
        return make_sample(
            image=read_pixels(files["image"], COLOR, "8-bit RGB"),
            segmentation=labels,
            depth=depth.astype(np.float32) / _MILLIMETRES,
            normal=None if normal is None else _vectors(normal),
            classes=len(self.info.classes),
            origin={key: str(path) for key, path in files.items()},
        )


def _vectors(colors: Array) -> Array:
    """[H, W, 3] uint8 -> coordinates; 0,0,0 where all three colors are 127, or all are 128."""
    nothing = (colors == 127).all(-1, keepdims=True) | (colors == 128).all(-1, keepdims=True)
    vectors: Array = np.where(nothing, np.float32(0), colors.astype(np.float32) / np.float32(127.5) - 1)
    return vectors
