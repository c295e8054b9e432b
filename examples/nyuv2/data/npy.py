"""The npy folder of MTAN and LibMTL: {train,val}/{image,label,depth,normal}/{i}.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness.errors import DataError

from nyuv2.data.folders import Kind, paired_files
from nyuv2.data.sample import IGNORE, Array, DataInfo, Sample, class_names, make_sample

_UNLABELLED = -1


class NpyFolder:
    """One split of the npy folder that came with MTAN (Liu, Johns and Davison, CVPR 2019).

    image [H, W, 3] in 0..1, label [H, W] with -1 where unlabelled, depth [H, W, 1] or [H, W] in metres and
    normal [H, W, 3], both zero where invalid. Normals are taken as x right, y up, z towards the camera. A
    split without the normal folder has no normal task.
    """

    def __init__(self, split: Path, *, classes: int) -> None:
        names = class_names(classes, (13,), "an npy folder")
        kinds = {"image": "image", "segmentation": "label", "depth": "depth"}
        if (split / "normal").is_dir():
            kinds["normal"] = "normal"
        tasks = tuple(key for key in kinds if key != "image")
        self.info = DataInfo("NYUv2 (npy folder)", names, tasks)
        self._files = paired_files(split, {key: Kind(folder, (".npy",)) for key, folder in kinds.items()})

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Sample:
        files = self._files[index]
        arrays = {key: _read(path) for key, path in files.items()}
        depth = arrays["depth"]
        labels = arrays["segmentation"]
        return make_sample(
            image=arrays["image"],
            segmentation=np.where(labels == _UNLABELLED, IGNORE, labels),
            depth=depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth,
            normal=arrays.get("normal"),
            classes=len(self.info.classes),
            origin={key: str(path) for key, path in files.items()},
        )


def _read(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header leads its parser to errors of many kinds
        raise DataError(f"{path}: expected a whole .npy array, found one that does not load ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected one numeric array, found {getattr(array, 'dtype', type(array).__name__)}")
    return array
