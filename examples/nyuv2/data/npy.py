"""The npy folders of MTAN and LibMTL: {train,val}/{image,label,depth,normal}/{i}.npy, of NYUv2 and of Cityscapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness.errors import DataError

from nyuv2.data.folders import Kind, paired_files
from nyuv2.data.sample import IGNORE, INDOORS, Array, DataInfo, DepthScale, Sample, class_names, make_sample

_UNLABELLED = -1
_STREETS = (7, 19)  # the labellings of Cityscapes
_SHARE_OF_DISPARITY = DepthScale("", maximum=1.0, typical=0.1, inverse=True)


class NpyFolder:
    """One split of an npy folder that came with MTAN (Liu, Johns and Davison, CVPR 2019).

    image [H, W, 3] in 0..1, label [H, W] with -1 where unlabelled, depth [H, W, 1] or [H, W] and normal
    [H, W, 3], both zero where invalid. A split without the normal folder has no normal task.

    Of NYUv2, depth is in metres, normals are taken as x right, y up, z towards the camera, and there are 13
    classes. Of Cityscapes there are no normals, depth is the 16-bit disparity of the official tree divided
    by 65536 (so published errors are of that, not of metres), and there are 7 classes in label/ or label_7/,
    or 19 in label_19/. It is Cityscapes if such a folder is there, if `classes` is 7 or 19, or if pictures
    without normals are twice as wide as high.
    """

    def __init__(self, split: Path, *, classes: int | None) -> None:
        streets = _is_cityscapes(split, classes)
        offered = _STREETS if streets else (13,)
        names = class_names(classes, offered, f"an npy folder of {'Cityscapes' if streets else 'NYUv2'}")
        labels = f"label_{len(names)}"
        kinds = {"image": "image", "segmentation": labels if (split / labels).is_dir() else "label", "depth": "depth"}
        if (split / "normal").is_dir() and not streets:
            kinds["normal"] = "normal"
        tasks = tuple(key for key in kinds if key != "image")
        title = "Cityscapes (npy folder)" if streets else "NYUv2 (npy folder)"
        self.info = DataInfo(title, names, tasks, _SHARE_OF_DISPARITY if streets else INDOORS)
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
            scale=self.info.depth,
        )


def _is_cityscapes(split: Path, classes: int | None) -> bool:
    if classes is not None:
        return classes in _STREETS
    if any((split / f"label_{count}").is_dir() for count in _STREETS):
        return True
    if (split / "normal").is_dir():
        return False
    first = min((split / "image").glob("*.npy"), default=None)
    shape = () if first is None else _read(first).shape
    return len(shape) == 3 and shape[1] == 2 * shape[0]


def _read(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header leads its parser to errors of many kinds
        raise DataError(f"{path}: expected a whole .npy array, found one that does not load ({error}); restore the file") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        found = getattr(array, "dtype", type(array).__name__)
        raise DataError(f"{path}: expected one numeric array, found {found}; save it by numpy.save")
    return array
