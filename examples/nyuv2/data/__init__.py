"""NYUv2 for multi-task learning: generated rooms, and the formats the data set is found in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import DataError, MissingDataError

from nyuv2.data.dataset import NYUv2Dataset
from nyuv2.data.mat import MatFile
from nyuv2.data.npy import NpyFolder
from nyuv2.data.png import PngFolder
from nyuv2.data.rooms import GeneratedRooms
from nyuv2.data.sample import IGNORE, DataInfo, Sample, Source

__all__ = ["IGNORE", "DataError", "DataInfo", "MissingDataError", "NYUv2Dataset", "Sample", "open_dataset"]

GENERATED = "generated"
_GENERATED_COUNT = {"train": 512, "val": 128}
_PNG_SPLITS = {"train": ("train",), "val": ("test", "val")}
_LAYOUTS = (
    f'"{GENERATED}", the path of nyu_depth_v2_labeled.mat, of a folder with train/image/*.npy and '
    "val/image/*.npy, or of a folder with train/rgb/*.jpg and test/rgb/*.jpg"
)


def open_dataset(
    source: str | Path,
    *,
    split: Literal["train", "val"],
    size: tuple[int, int],
    classes: int = 13,
    augment: bool = False,
    seed: int = 0,
    count: int | None = None,
) -> NYUv2Dataset:
    """Opens generated rooms, a .mat file, an npy folder or a PNG folder, recognized from what is there.

    Args:
        source: "generated", or the path of the data.
        split: "val" is the folder test or val of a PNG folder, and the official test split of the .mat file.
        size: height and width of the samples.
        classes: 13; or 40, from a .mat file or a PNG folder.
        augment: random crops, flips and colors, a pure function of (seed, epoch, index).
        seed: of the augmentation, and of the generated rooms themselves.
        count: at most this many samples; of generated rooms, exactly as many (default: 512 train, 128 val).

    Returns:
        A map-style data set of samples with image float32 [3, H, W], segmentation int64 [H, W], depth
        float32 [1, H, W] and, where the data has them, normal float32 [3, H, W].

    Raises:
        MissingDataError: a directory, a folder or a partner file is not there.
        DataError: the data is not what its format promises, here or when the sample is read.
    """
    if split not in ("train", "val"):
        raise DataError(f'split: expected "train" or "val", found {split!r}')
    if seed < 0:
        raise DataError(f"seed: expected a non-negative number, found {seed}")
    generated = source == GENERATED
    reader: Source
    if generated:
        rooms = _GENERATED_COUNT[split] if count is None else count
        reader = GeneratedRooms(split=split, size=size, classes=classes, seed=seed, count=rooms)
    else:
        reader = _open_path(Path(source), split, classes)
    return NYUv2Dataset(reader, size=size, augment=augment, seed=seed, count=count, keep=generated)


def _open_path(path: Path, split: Literal["train", "val"], classes: int) -> Source:
    if not path.exists():
        raise MissingDataError(f"--data: expected {_LAYOUTS}; found nothing at {path}")
    if path.is_file():
        if path.suffix.lower() != ".mat":
            raise DataError(f"--data: expected {_LAYOUTS}; found the file {path}")
        return MatFile(path, split=split, classes=classes)
    if any((path / name / "image").is_dir() for name in ("train", "val")):
        return NpyFolder(path / split, classes=classes)
    if any((path / name / "rgb").is_dir() for names in _PNG_SPLITS.values() for name in names):
        present = [name for name in _PNG_SPLITS[split] if (path / name).is_dir()]
        folder = path / (present or _PNG_SPLITS[split])[0]
        return PngFolder(folder, folded=split == "train", classes=classes)
    inside = sorted(entry.name for entry in path.iterdir())[:8]
    raise DataError(f"--data: expected {_LAYOUTS}; found {path} with {inside or 'nothing in it'}")
