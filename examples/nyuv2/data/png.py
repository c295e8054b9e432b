"""Folders of pictures: {train,test}/{rgb,depth,seg13,seg40}/NAME.{jpg,png}."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from harness.errors import DataError
from PIL import Image

from nyuv2.data.folders import Kind, paired_files
from nyuv2.data.sample import IGNORE, Array, DataInfo, Sample, class_names, make_sample

_MILLIMETRES = 1000
_OTHERPROP = 39  # of the 40 classes


class PngFolder:
    """One split of a PNG folder.

    rgb is 8-bit RGB; depth is 16-bit grey in millimetres, 0 where invalid; seg13 and seg40 are 8-bit class
    ids from 0, 255 where unlabelled. The common release folds the unlabelled pixels of its training split
    into class 39 of seg40 and class 6 of seg13, so with `folded` a pixel whose seg40 is 39 becomes IGNORE.
    """

    def __init__(self, split: Path, *, folded: bool, classes: int) -> None:
        names = class_names(classes, (13, 40), "a PNG folder")
        self.info = DataInfo("NYUv2 (image folder)", names, ("segmentation", "depth"))
        kinds = {
            "image": Kind("rgb", (".jpg", ".jpeg", ".png")),
            "segmentation": Kind(f"seg{classes}", (".png",)),
            "depth": Kind("depth", (".png",)),
        }
        self._folded = folded
        if folded and classes == 13:
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
        labels = _read(files["segmentation"], ("L", "P"), "8-bit class ids")
        if self._folded:
            fine = files.get("seg40")
            folded = labels if fine is None else _read(fine, ("L", "P"), "8-bit class ids")
            if folded.shape != labels.shape:
                raise DataError(
                    f"{fine}: expected shape {list(labels.shape)} like {files['segmentation']}, "
                    f"found {list(folded.shape)}; restore the pair"
                )
            labels = np.where(folded == _OTHERPROP, IGNORE, labels)
        depth = _read(files["depth"], ("I;16", "I;16B", "I"), "16-bit grey depth in millimetres")
        return make_sample(
            image=_read(files["image"], ("RGB",), "8-bit RGB"),
            segmentation=labels,
            depth=depth.astype(np.float32) / _MILLIMETRES,
            normal=None,
            classes=len(self.info.classes),
            origin={key: str(path) for key, path in files.items()},
        )


def _read(path: Path, modes: tuple[str, ...], expected: str) -> Array:
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: expected an image, found one that does not decode ({error}); restore the file") from error
    if mode not in modes:
        raise DataError(f"{path}: expected {expected}, found an image of mode {mode}; convert it")
    return pixels
