"""The official CIFAR-10 for Python: cifar-10-batches-py/data_batch_1 … data_batch_5, test_batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from harness.errors import DataError

from cifar10.data.images import CLASSES, SIZE, Images, Pixels
from cifar10.data.pickles import read_mapping

FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)}
_VALUES = 3 * SIZE * SIZE
_AGAIN = "extract it again from cifar-10-python.tar.gz."


def open_batches(path: Path, split: Literal["train", "val"]) -> Images:
    """One split of the data set: "val" is the official test batch.

    Args:
        path: the folder that holds data_batch_1, or the one above it.
        split: "train" reads all five batches.

    Raises:
        DataError: there is no such folder, a file is missing, or holds something else than RGB images and as many classes.
    """
    folder = _folder(path)
    if missing := [name for name in FILES[split] if not (folder / name).is_file()]:
        raise DataError(
            f"{folder}: expected the files {', '.join(FILES[split])}, found no {', '.join(missing)}; extract "
            "cifar-10-python.tar.gz again."
        )
    parts = [_read(folder / name) for name in FILES[split]]
    return Images("CIFAR-10", np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts]))


def _folder(path: Path) -> Path:
    expected = f"--data: expected generated, or the path of the folder {FOLDER} with data_batch_1 … data_batch_5 and test_batch"
    if not path.exists():
        raise DataError(f"{expected}; found nothing at {path}.")
    if path.is_file():
        advice = f"extract it (tar xzf {path.name}), and pass the folder" if _archive(path) else "pass the folder"
        raise DataError(f"{expected}; found the file {path}: {advice}.")
    known = {name for names in FILES.values() for name in names}
    for folder in (path, path / FOLDER):
        if folder.is_dir() and any(entry.name in known for entry in folder.iterdir()):
            return folder
    inside = sorted(path.iterdir())
    if archives := [entry for entry in inside if _archive(entry)]:
        raise DataError(f"{expected}; found the archive {archives[0]}: extract it first (tar xzf {archives[0].name}).")
    names = ", ".join(entry.name for entry in inside[:6]) if inside else "nothing in it"
    if any(entry.name in ("data_batch_1.bin", "data_batch_1.mat") for folder in (path, path / "cifar-10-batches-bin")
           if folder.is_dir() for entry in folder.iterdir()):  # fmt: skip
        names += " (the binary or the Matlab version: the Python version, cifar-10-python.tar.gz, is the one that is read)"
    raise DataError(f"{expected}; found {path} with {names}.")


def _archive(path: Path) -> bool:
    return path.name.lower().endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def _read(path: Path) -> tuple[Pixels, npt.NDArray[np.int64]]:
    batch = read_mapping(path)
    for key in (b"data", b"labels"):
        if key not in batch:
            advice = "this is CIFAR-100, which has other classes." if b"fine_labels" in batch else _AGAIN
            raise DataError(f"{path}: expected {key.decode()!r} in the batch, found {_keys(batch)}; {advice}")
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _VALUES:
        raise DataError(f"{path}: expected 'data' as uint8 [N, {_VALUES}], found {_described(pixels)}; {_AGAIN}")
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: expected 'labels' as a list of whole numbers, found {_described(labels)}; {_AGAIN}")
    if len(labels) != len(pixels):
        raise DataError(f"{path}: expected as many labels as images, found {len(labels)} labels and {len(pixels)} images; {_AGAIN}")
    if not labels:
        raise DataError(f"{path}: expected at least one image, found none; {_AGAIN}")
    if wrong := sorted({label for label in labels if not 0 <= label < len(CLASSES)}):
        raise DataError(f"{path}: expected labels in 0..{len(CLASSES) - 1}, found {wrong[:8]}; {_AGAIN}")
    return pixels.reshape(-1, 3, SIZE, SIZE), np.array(labels, np.int64)


def _keys(batch: dict[Any, Any]) -> str:
    return ", ".join(sorted(repr(key.decode(errors="replace") if isinstance(key, bytes) else key) for key in batch)) or "nothing"


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list):
        return f"a list of {', '.join(sorted({type(entry).__name__ for entry in value}))}"
    return type(value).__name__
