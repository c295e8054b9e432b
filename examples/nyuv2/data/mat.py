"""The official nyu_depth_v2_labeled.mat, with splits.mat and the two class mappings beside it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness.errors import DataError, MissingDataError

from nyuv2.data.sample import (
    IGNORE,
    Array,
    DataInfo,
    Sample,
    class_names,
    make_sample,
)

_SPLIT_NAMES = {"train": "trainNdxs", "val": "testNdxs"}
_WHERE = {
    "splits.mat": "it is published beside the data set (NYU Depth Dataset V2)",
    "classMapping40.mat": "it maps the 894 labels to 40 classes (Gupta, Arbelaez and Malik, CVPR 2013)",
    "class13Mapping.mat": "it maps the 40 classes to 13 (Couprie et al., ICLR 2013)",
}


class MatFile:
    """One official split of the labelled data set (Silberman et al., ECCV 2012), 640×480.

    The file is MATLAB 7.3, that is HDF5 with MATLAB's axes reversed: images [N, 3, 640, 480] uint8, depths
    and labels [N, 640, 480], in metres and in 0..894 with 0 where unlabelled. The file is opened by each
    process on its own, at its first sample. The three small files are MATLAB 5 and need SciPy.
    """

    def __init__(self, path: Path, *, split: Literal["train", "val"], classes: int) -> None:
        names = class_names(classes, (13, 40), "the .mat file")
        self.info = DataInfo("NYUv2 (nyu_depth_v2_labeled.mat)", names, ("segmentation", "depth"))
        self._path = path
        self._handle: Any = None
        self._process = -1
        self._count = self._check()
        self._class_of = _class_table(path.parent, classes)  # [labels + 1]
        self._members = self._official_split(split)

    def __len__(self) -> int:
        return len(self._members)

    def load(self, index: int) -> Sample:
        member = int(self._members[index])
        try:
            file = self._file()
            image = file["images"][member].transpose(2, 1, 0)  # [3, 640, 480] -> [480, 640, 3]
            depth = file["depths"][member].T
            labels = file["labels"][member].T
        except OSError as error:
            raise DataError(f"{self._path}: expected sample {member}, found damage ({error}); download it again") from error
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(self._class_of):
            raise DataError(
                f"{self._path}, labels[{member}]: expected integers in 0..{len(self._class_of) - 1}, "
                f"found {labels.dtype} in {labels.min()}..{labels.max()}; check classMapping40.mat"
            )
        return make_sample(
            image=image,
            segmentation=self._class_of[labels],
            depth=depth,
            normal=None,
            classes=len(self.info.classes),
            origin={
                "image": f"{self._path}, images[{member}]",
                "segmentation": f"{self._path}, labels[{member}]",
                "depth": f"{self._path}, depths[{member}]",
            },
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: HDF5 handles do not travel between processes."""
        return self.__dict__ | {"_handle": None, "_process": -1}

    def _file(self) -> Any:
        if self._process != os.getpid():  # a forked child must not read through its parent's handle
            self._handle = _open(self._path)
            self._process = os.getpid()
        return self._handle

    def _check(self) -> int:
        """The number of pictures, after a look at the arrays' shapes. The file is closed again."""
        with _open(self._path) as file:
            expected = {"images": 4, "depths": 3, "labels": 3}
            for name, axes in expected.items():
                if name not in file or len(getattr(file[name], "shape", ())) != axes:
                    shape = list(getattr(file[name], "shape", ())) if name in file else "no such array"
                    raise DataError(f"{self._path}: expected {name} with {axes} axes, found {shape}")
            images, depths, labels = (tuple(file[name].shape) for name in expected)
            if images[1] != 3 or not images[:1] + images[2:] == depths == labels:
                raise DataError(
                    f"{self._path}: expected images [N, 3, W, H] with depths and labels [N, W, H], found "
                    f"{list(images)}, {list(depths)} and {list(labels)}"
                )
            return int(images[0])

    def _official_split(self, split: Literal["train", "val"]) -> Array:
        path = self._path.parent / "splits.mat"
        members = _small_array(path, _SPLIT_NAMES[split]).astype(np.int64).ravel() - 1  # 1-based on disk
        if members.size == 0:
            raise DataError(f"{path}: expected pictures in {_SPLIT_NAMES[split]}, found an empty split")
        if members.min() < 0 or members.max() >= self._count:
            raise DataError(
                f"{path}: expected {_SPLIT_NAMES[split]} in 1..{self._count}, the pictures of {self._path}, "
                f"found {members.min() + 1}..{members.max() + 1}; use the splits of the same release"
            )
        return members


def _class_table(folder: Path, classes: int) -> Array:
    """The class of every label of the file, from 0; label 0 (unlabelled) is IGNORE. [895] int64"""
    path = folder / "classMapping40.mat"
    mapped = _small_array(path, "mapClass").astype(np.int64).ravel() - 1  # [894], 0..39
    _require_range(path, "mapClass", mapped, 40)
    if classes == 13:
        path = folder / "class13Mapping.mat"
        coarse = _small_array(path, "classMapping13", "labels13").astype(np.int64).ravel() - 1  # [40], 0..12
        _require_range(path, "labels13", coarse, 13)
        if coarse.size != 40:
            raise DataError(f"{path}: expected labels13 with 40 entries, found {coarse.size}")
        mapped = coarse[mapped]
    return np.concatenate([[IGNORE], mapped])


def _require_range(path: Path, name: str, ids: Array, classes: int) -> None:
    if ids.size == 0 or ids.min() < 0 or ids.max() >= classes:
        raise DataError(f"{path}: expected {name} in 1..{classes}, found {(ids + 1).tolist()[:8]}")


def _small_array(path: Path, name: str, member: str | None = None) -> Array:
    """An array of a MATLAB 5 file, or one member of a struct in it."""
    if not path.is_file():
        raise MissingDataError(f"{path}: expected this file beside the .mat file, found none; {_WHERE[path.name]}")
    io = _library("scipy.io", "scipy")
    try:
        content = io.loadmat(path)[name]
        return np.asarray(content if member is None else content[member][0, 0])
    except Exception as error:  # whatever the parser meets in a file that is not what it should be
        wanted = name if member is None else f"{name}.{member}"
        raise DataError(f"{path}: expected a MATLAB 5 file with {wanted}, found trouble ({error!r})") from error


def _open(path: Path) -> Any:
    h5py = _library("h5py", "h5py")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: expected a MATLAB 7.3 (HDF5) file, found one that does not open ({error})") from error


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"source: reading the .mat file needs {package}, found none; pip install {package}") from error
