"""The npy folder of MTAN and LibMTL, written here in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE, DataError, MissingDataError, open_dataset

SIZE = (6, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven train and two val samples of 6 × 8; sample i has depth 1 + i/10, with a hole, and label i."""
    for split, count in (("train", 11), ("val", 2)):
        for kind in ("image", "label", "depth", "normal"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            image = np.random.default_rng(i).random((*SIZE, 3))
            label = np.full(SIZE, i, np.float32)
            label[0] = -1
            depth = np.full((*SIZE, 1), 1 + i / 10, np.float32)
            depth[1] = 0
            normal = np.zeros((*SIZE, 3), np.float32)
            normal[2:] = [0.6, 0, 0.8]
            for kind, array in (("image", image), ("label", label), ("depth", depth), ("normal", normal)):
                np.save(tmp_path / split / kind / f"{i}.npy", array)
    return tmp_path


def test_samples(folder: Path) -> None:
    data = open_dataset(folder, split="train", size=SIZE)
    assert len(data) == 11
    assert data.info.tasks == ("segmentation", "depth", "normal")
    for i in (0, 2, 10):  # 2 comes before 10
        sample = data[i]
        image = np.load(folder / "train" / "image" / f"{i}.npy")
        np.testing.assert_allclose(sample["image"].permute(1, 2, 0), image, atol=1e-6)
        assert sample["segmentation"][0].tolist() == [IGNORE] * 8
        assert np.unique(sample["segmentation"][1:]).tolist() == [i]
        assert sample["depth"][0, 1].eq(0).all()
        assert sample["depth"][0, 0, 0] == pytest.approx(1 + i / 10)
        assert sample["normal"][:, :2].eq(0).all()
        torch.testing.assert_close(sample["normal"][:, 2, 3], torch.tensor([0.6, 0.0, 0.8]))


def test_splits_and_count(folder: Path) -> None:
    assert len(open_dataset(str(folder), split="val", size=SIZE)) == 2
    assert len(open_dataset(folder, split="train", size=SIZE, count=4)) == 4
    assert len(open_dataset(folder, split="train", size=SIZE, count=400)) == 11


def test_depth_without_channel_axis(folder: Path) -> None:
    np.save(folder / "val" / "depth" / "0.npy", np.full(SIZE, 2.5))
    assert np.unique(open_dataset(folder, split="val", size=SIZE)[0]["depth"]).tolist() == [2.5]


def test_without_normals(folder: Path) -> None:
    for path in (folder / "val" / "normal").iterdir():
        path.unlink()
    (folder / "val" / "normal").rmdir()
    data = open_dataset(folder, split="val", size=SIZE)
    assert data.info.tasks == ("segmentation", "depth")
    assert "normal" not in data[0]


def test_resized_to_the_asked_size(folder: Path) -> None:
    sample = open_dataset(folder, split="train", size=(12, 16))[3]
    assert sample["image"].shape == (3, 12, 16)
    assert np.unique(sample["segmentation"]).tolist() == [3, IGNORE]
    assert np.unique(sample["depth"]).tolist() == [0.0, pytest.approx(1.3)]
    assert np.unique(sample["normal"].norm(dim=0)).tolist() == [0.0, pytest.approx(1)]


def test_missing_partner(folder: Path) -> None:
    (folder / "train" / "depth" / "7.npy").unlink()
    with pytest.raises(MissingDataError, match=r"depth: expected 7\.npy as the partner of .*image.7\.npy.*1 of 11"):
        open_dataset(folder, split="train", size=SIZE)


def test_missing_kind(folder: Path) -> None:
    (folder / "val" / "label").rename(folder / "val" / "labels")
    with pytest.raises(MissingDataError, match=r"val.label: expected a folder of \.npy files, found none"):
        open_dataset(folder, split="val", size=SIZE)


def test_truncated_file(folder: Path) -> None:
    path = folder / "train" / "normal" / "1.npy"
    path.write_bytes(path.read_bytes()[:-100])
    data = open_dataset(folder, split="train", size=SIZE)
    assert data[0]["image"].shape == (3, *SIZE)
    with pytest.raises(DataError, match=r"normal.1\.npy: expected a whole \.npy array, found one that does not load"):
        data[1]


@pytest.mark.parametrize("content", [b"", b"not an array at all"])
def test_file_that_is_no_array(folder: Path, content: bytes) -> None:
    (folder / "val" / "image" / "0.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"image.0\.npy: expected a whole \.npy array"):
        open_dataset(folder, split="val", size=SIZE)[0]


def test_damaged_header(folder: Path) -> None:
    path = folder / "val" / "image" / "0.npy"
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))
    with pytest.raises(DataError, match=r"image.0\.npy: expected a whole \.npy array"):
        open_dataset(folder, split="val", size=SIZE)[0]


def test_pickled_objects_are_refused(folder: Path) -> None:
    np.save(folder / "val" / "label" / "0.npy", np.array([{"label": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"label.0\.npy: expected a whole \.npy array"):
        open_dataset(folder, split="val", size=SIZE)[0]


def test_text_arrays_are_refused(folder: Path) -> None:
    np.save(folder / "val" / "label" / "0.npy", np.full(SIZE, "wall"))
    with pytest.raises(DataError, match=r"label.0\.npy: expected one numeric array, found <U4"):
        open_dataset(folder, split="val", size=SIZE)[0]


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("image", np.zeros((3, *SIZE)), r"image.0\.npy: expected an image \[H, W, 3\]"),
        ("label", np.full(SIZE, 40), r"label.0\.npy: expected class ids in 0\.\.12"),
        ("depth", np.ones((2, 2, 1)), r"depth.0\.npy: expected depth \[6, 8\]"),
        ("depth", np.full(SIZE, 2000.0), r"depth.0\.npy: expected depth in 0\.\.10 m"),
        ("normal", np.zeros((*SIZE, 1)), r"normal.0\.npy: expected normals \[6, 8, 3\]"),
    ],
)
def test_wrong_content_names_the_file(folder: Path, kind: str, array: np.ndarray, message: str) -> None:
    np.save(folder / "val" / kind / "0.npy", array)
    with pytest.raises(DataError, match=message):
        open_dataset(folder, split="val", size=SIZE)[0]


def test_empty_split(folder: Path) -> None:
    for path in folder.glob("val/*/*.npy"):
        path.unlink()
    with pytest.raises(DataError, match=r"val: expected samples as image/\*\.npy.*found an empty split"):
        open_dataset(folder, split="val", size=SIZE)


def test_forty_classes_are_not_offered(folder: Path) -> None:
    with pytest.raises(DataError, match="an npy folder of NYUv2 offers 13 classes, found 40"):
        open_dataset(folder, split="train", size=SIZE, classes=40)
