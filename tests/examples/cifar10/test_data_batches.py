"""The official folder: what is read, in which order, and everything that may be wrong with it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar10.data import open_images
from harness.errors import DataError


def _open(path: Path, split: str = "train", count: int | None = None) -> Any:
    return open_images(str(path), split, count=count, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("above", [False, True])
def test_batches_in_order(official: Path, above: bool) -> None:
    path = official.parent if above else official
    train, val = _open(path), _open(path, "val")
    assert (train.pixels.shape, val.pixels.shape) == ((50, 3, 32, 32), (10, 3, 32, 32))
    assert train.pixels[:, 0, 0, 0].tolist() == list(range(10, 60))
    assert train.labels.tolist() == [(number + index) % 10 for number in range(1, 6) for index in range(10)]
    assert val.labels.tolist() == [(6 + index) % 10 for index in range(10)]
    assert (train.name, train.labels.dtype) == ("CIFAR-10", np.int64)
    assert _open(path, count=12).labels.tolist() == train.labels[:12].tolist()
    assert len(_open(path, count=1000).labels) == 50


def test_planes_are_red_green_blue_by_row(official: Path, batch: Callable[..., bytes]) -> None:
    pixels = np.zeros((1, 3072), np.uint8)
    pixels[0, 1024 + 3 * 32 + 7] = 200  # green, row 3, column 7
    (official / "test_batch").write_bytes(batch(pixels, [0]))
    assert np.argwhere(_open(official, "val").pixels[0]).tolist() == [[1, 3, 7]]


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_4", "test_batch"])
def test_a_missing_file_is_named(official: Path, name: str) -> None:
    (official / name).unlink()
    with pytest.raises(DataError, match=rf"cifar-10-batches-py: .*found no {name}; extract"):
        _open(official, "val" if name == "test_batch" else "train")


def test_a_truncated_file_is_named(official: Path) -> None:
    path = official / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"data_batch_3: expected a whole pickle .*extract it again"):
        _open(official)


PIXELS = np.zeros((10, 3072), np.uint8)
LABELS = list(range(10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": PIXELS}, r"expected 'labels' in the batch, found 'data'"),
        ({b"labels": LABELS}, r"expected 'data' in the batch, found 'labels'"),
        ({}, r"expected 'data' in the batch, found nothing"),
        ({b"data": PIXELS, b"fine_labels": LABELS}, "this is CIFAR-100"),
        ({b"data": PIXELS.astype(np.int64), b"labels": LABELS}, r"expected 'data' as uint8 \[N, 3072\], found int64 \[10, 3072\]"),
        ({b"data": PIXELS[:, :3000], b"labels": LABELS}, r"found uint8 \[10, 3000\]"),
        ({b"data": PIXELS.reshape(10, 3, 1024), b"labels": LABELS}, r"found uint8 \[10, 3, 1024\]"),
        ({b"data": b"abc", b"labels": LABELS}, "expected 'data' as uint8 .*found bytes"),
        ({b"data": PIXELS, b"labels": LABELS[:9]}, "found 9 labels and 10 images"),
        ({b"data": PIXELS, b"labels": [*LABELS[:9], 10]}, r"expected labels in 0\.\.9, found \[10\]"),
        ({b"data": PIXELS, b"labels": [*LABELS[:9], -1]}, r"expected labels in 0\.\.9, found \[-1\]"),
        (
            {b"data": PIXELS, b"labels": [*LABELS[:9], 1.0]},
            "expected 'labels' as a list of whole numbers, found a list of float, int",
        ),
        ({b"data": PIXELS, b"labels": b"0123456789"}, "expected 'labels' as a list of whole numbers, found bytes"),
        ({b"data": PIXELS, b"labels": np.zeros((10, 2), np.int64)}, r"expected 'labels' .*found int64 \[10, 2\]"),
        ({b"data": PIXELS[:0], b"labels": []}, "expected at least one image, found none"),
    ],
)
def test_wrong_contents(official: Path, content: dict[Any, Any], message: str) -> None:
    (official / "data_batch_2").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(DataError, match=rf"data_batch_2: .*{message}"):
        _open(official)


def test_labels_may_be_an_array(official: Path) -> None:
    content = {b"data": PIXELS, b"labels": np.arange(10)}
    (official / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    assert _open(official, "val").labels.tolist() == LABELS


def test_no_such_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data: expected generated, or .*data_batch_5.*; found nothing at .*nowhere"):
        _open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"--data: .*with nothing in it"):
        _open(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"--data: .*with cats"):
        _open(tmp_path)


def test_an_archive_is_to_be_extracted(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.touch()
    for path in (tmp_path, archive):
        with pytest.raises(DataError, match=r"--data: .*extract it.*tar xzf cifar-10-python\.tar\.gz"):
            _open(path)


def test_other_versions_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").touch()
    for path in (tmp_path, folder):
        with pytest.raises(DataError, match=r"the Python version, cifar-10-python\.tar\.gz, is the one that is read"):
            _open(path)
    with pytest.raises(DataError, match=r"found the file .*data_batch_1\.bin: pass the folder"):
        _open(folder / "data_batch_1.bin")
