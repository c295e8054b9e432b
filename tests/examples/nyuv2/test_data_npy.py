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


def streets(root: Path, labels: dict[str, np.ndarray]) -> Path:
    """Two val samples as MTAN has Cityscapes: 8 × 16, no normals, depth 0.25 with a hole, and the given label folders."""
    content = {"image": np.full((8, 16, 3), 0.5), "depth": np.full((8, 16, 1), 0.25, np.float32), **labels}
    content["depth"][0] = 0
    for kind, array in content.items():
        (root / "val" / kind).mkdir(parents=True)
        for i in range(2):
            np.save(root / "val" / kind / f"{i}.npy", array)
    return root


def test_cityscapes(tmp_path: Path) -> None:
    seven = np.full((8, 16), 6.0)
    seven[1] = -1
    for name, labels in (("told", {"label_7": seven, "label_19": seven + 12}), ("seen", {"label": seven})):
        data = open_dataset(streets(tmp_path / name, labels), split="val", size=(8, 16))
        assert (len(data.info.classes), data.info.tasks, data.info.depth.unit) == (7, ("segmentation", "depth"), "")
        sample = data[0]
        assert sample["segmentation"][:, 0].tolist() == [6, IGNORE, 6, 6, 6, 6, 6, 6]
        assert sample["depth"][0, :2, 0].tolist() == [0.0, 0.25]
    (tmp_path / "nineteen").mkdir()
    data = open_dataset(streets(tmp_path / "nineteen", {"label_19": np.full((8, 16), 18)}), split="val", size=(8, 16), classes=19)
    assert data[1]["segmentation"].unique().tolist() == [18]
    np.save(tmp_path / "nineteen/val/depth/1.npy", np.full((8, 16), 20.0))
    with pytest.raises(DataError, match=r"depth.1\.npy: expected depth in 0\.\.1, .*20\.\.20; check the unit"):
        data[1]


def test_a_sum_of_0_is_a_normal_where_the_coordinates_are_not_0(folder: Path) -> None:
    normal = np.zeros((*SIZE, 3), np.float32)
    normal[0] = np.array([0.5, -0.5, 0.0]) / 0.5**0.5
    np.save(folder / "val" / "normal" / "0.npy", normal)
    found = open_dataset(folder, split="val", size=SIZE)[0]["normal"]
    assert found[:, 0].norm(dim=0).tolist() == pytest.approx([1.0] * 8)
    assert found[:, 1:].eq(0).all()


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("label", np.zeros(SIZE[::-1]), r"label.0\.npy: expected class ids \[6, 8\] .*\[8, 6\]; swap height and width"),
        ("depth", np.ones((*SIZE[::-1], 1)), r"depth.0\.npy: expected depth \[6, 8\] .*\[8, 6\]; swap height and width"),
        ("image", np.zeros((3, *SIZE)), r"image.0\.npy: expected an image \[H, W, 3\], .*; move the colors to the last axis"),
        ("image", np.zeros((*SIZE, 3), np.int16), r"image.0\.npy: expected an image of dtype uint8 or floating.*; convert"),
        ("depth", np.ones(SIZE, np.uint16), r"depth.0\.npy: expected depth in metres of a floating-point dtype.*; convert"),
        ("label", np.full(SIZE, 0.5), r"label.0\.npy: expected integral class ids, .*; resample labels by the nearest"),
        ("normal", np.full((*SIZE, 3), 255.0), r"normal.0\.npy: expected normals of length 1, .*; scale them"),
        ("normal", np.zeros((3, *SIZE)), r"normal.0\.npy: expected normals \[6, 8, 3\].*; put x, y, z on the last axis"),
    ],
)
def test_faults_come_with_the_way_out(folder: Path, kind: str, array: np.ndarray, message: str) -> None:
    np.save(folder / "val" / kind / "0.npy", array)
    with pytest.raises(DataError, match=message):
        open_dataset(folder, split="val", size=SIZE)[0]
