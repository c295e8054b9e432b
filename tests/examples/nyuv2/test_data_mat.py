"""The official .mat file, written here in small with MATLAB's axes reversed as HDF5 stores them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE, DataError, MissingDataError, open_dataset
from torch.utils.data import DataLoader

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")

HEIGHT, WIDTH = 4, 6
LABELS = 7  # instead of 894
TO_40 = np.array([[40, 1, 4, 7, 22, 5, 9]], np.uint8)  # label k -> class, from 1
TO_13 = np.arange(40, dtype=np.uint8) % 13 + 1


def write(folder: Path, **changes: np.ndarray) -> Path:
    """Five pictures: i has red i, green = row, blue = column, labels column + 1 but row 0 unlabelled, depth 1 + row."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    images = np.stack([np.stack([np.full_like(row, i), row, column]) for i in range(5)]).astype(np.uint8)
    labels = np.where(row == 0, 0, column + 1)[None].repeat(5, 0).astype(np.uint16)
    depths = (1.0 + row + 0.1 * column)[None].repeat(5, 0).astype(np.float32)
    depths[:, 1, 1] = 0
    arrays = {
        "images": images.swapaxes(2, 3),  # [N, 3, W, H]
        "labels": labels.swapaxes(1, 2),
        "depths": depths.swapaxes(1, 2),
    }
    path = folder / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as file:
        for name, array in (arrays | changes).items():
            file[name] = array
    scipy_io.savemat(folder / "splits.mat", {"trainNdxs": [[1], [4], [5]], "testNdxs": [[2], [3]]})
    scipy_io.savemat(folder / "classMapping40.mat", {"mapClass": TO_40})
    scipy_io.savemat(folder / "class13Mapping.mat", {"classMapping13": {"labels13": TO_13}})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path)


def test_axes_are_turned_back(path: Path) -> None:
    data = open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    sample = data[1]  # picture 4, from 1
    row, column = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    torch.testing.assert_close(sample["image"] * 255, torch.stack([torch.full_like(row, 3), row, column]).float())
    expected = 1.0 + row + 0.1 * column
    expected[1, 1] = 0
    torch.testing.assert_close(sample["depth"][0], expected)
    assert data.info.tasks == ("segmentation", "depth")
    assert set(sample) == {"image", "segmentation", "depth"}


def test_classes(path: Path) -> None:
    """Label 0 is unlabelled and does not wrap; labels 1 to 6 follow the mappings."""
    fine = open_dataset(path, split="train", size=(HEIGHT, WIDTH), classes=40)[0]["segmentation"]
    assert fine[0].tolist() == [IGNORE] * WIDTH
    assert fine[1].tolist() == [39, 0, 3, 6, 21, 4]
    coarse = open_dataset(path, split="train", size=(HEIGHT, WIDTH), classes=13)[0]["segmentation"]
    assert coarse[0].tolist() == [IGNORE] * WIDTH
    assert coarse[3].tolist() == [39 % 13, 0, 3, 6, 21 % 13, 4]


def test_official_splits(path: Path) -> None:
    def reds(split: Any) -> list[int]:
        data = open_dataset(path, split=split, size=(HEIGHT, WIDTH))
        return [round(float(data[i]["image"][0, 0, 0] * 255)) for i in range(len(data))]

    assert reds("train") == [0, 3, 4]
    assert reds("val") == [1, 2]


def test_no_file_is_open_before_the_first_sample_nor_after_pickling(path: Path) -> None:
    data = open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    first = data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(first[key], copy[0][key]) for key in first)


def test_a_forked_child_opens_its_own_handle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counting(path: Path) -> Any:
        opened.append(os.getpid())
        return h5py.File(path, "r")

    data = open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    monkeypatch.setattr("nyuv2.data.mat._open", counting)
    parent = os.getpid()
    data[0], data[1]
    monkeypatch.setattr("os.getpid", lambda: parent + 1)
    data[0], data[1]
    assert opened == [parent, parent + 1]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_open_the_file_on_their_own(path: Path, context: str) -> None:
    data = open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    here = [data[i] for i in range(3)]  # the parent's handle is open when the workers start
    loader = DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context=context)
    for expected, batch in zip(here, loader, strict=True):
        assert all(torch.equal(expected[key], batch[key][0]) for key in expected)


@pytest.mark.parametrize("name", ["splits.mat", "classMapping40.mat", "class13Mapping.mat"])
def test_missing_small_file(path: Path, name: str) -> None:
    (path.parent / name).unlink()
    with pytest.raises(MissingDataError, match=rf"{name}: expected this file beside the \.mat file, found none; it "):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


def test_forty_classes_need_no_13_mapping(path: Path) -> None:
    (path.parent / "class13Mapping.mat").unlink()
    assert len(open_dataset(path, split="train", size=(HEIGHT, WIDTH), classes=40)) == 3


@pytest.mark.parametrize("name", ["splits.mat", "classMapping40.mat", "class13Mapping.mat"])
@pytest.mark.parametrize("damage", ["other content", "no mat"])
def test_small_file_without_its_content(path: Path, name: str, damage: str) -> None:
    if damage == "no mat":
        (path.parent / name).write_bytes(b"<html>404</html>")
    else:
        scipy_io.savemat(path.parent / name, {"something": [[1]]})
    with pytest.raises(DataError, match=rf"{name}: expected a MATLAB 5 file with"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


def test_splits_of_another_release(path: Path) -> None:
    scipy_io.savemat(path.parent / "splits.mat", {"trainNdxs": [[1], [1449]], "testNdxs": [[0]]})
    with pytest.raises(DataError, match=r"splits\.mat: expected trainNdxs in 1\.\.5.*found 1\.\.1449"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"expected testNdxs in 1\.\.5.*found 0\.\.0"):
        open_dataset(path, split="val", size=(HEIGHT, WIDTH))


def test_empty_split(path: Path) -> None:
    scipy_io.savemat(path.parent / "splits.mat", {"trainNdxs": [[1]], "testNdxs": np.zeros((0, 1))})
    with pytest.raises(DataError, match=r"splits\.mat: expected pictures in testNdxs, found an empty split"):
        open_dataset(path, split="val", size=(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classMapping40.mat", {"mapClass": [[0, 1]]}, r"expected mapClass in 1\.\.40, found \[0, 1\]"),
        ("classMapping40.mat", {"mapClass": [[41, 1]]}, r"expected mapClass in 1\.\.40, found \[41, 1\]"),
        ("class13Mapping.mat", {"classMapping13": {"labels13": TO_13[:9]}}, "labels13 with 40 entries, found 9"),
        ("class13Mapping.mat", {"classMapping13": {"labels13": TO_13 + 1}}, r"expected labels13 in 1\.\.13"),
    ],
)
def test_mappings_out_of_range(path: Path, name: str, content: dict[str, Any], message: str) -> None:
    scipy_io.savemat(path.parent / name, content)
    with pytest.raises(DataError, match=message):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


def test_labels_beyond_the_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, labels=np.full((5, WIDTH, HEIGHT), LABELS + 1, np.uint16))
    data = open_dataset(path, split="train", size=(HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"labels\[0\]: expected integers in 0\.\.7, found uint16 in 8\.\.8"):
        data[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((5, WIDTH, HEIGHT))}, r"expected images with 4 axes, found \[5, 6, 4\]"),
        ({"depths": np.zeros((5, HEIGHT, WIDTH))}, r"expected images \[N, 3, W, H\] with depths.*\[5, 4, 6\]"),
        ({"labels": np.zeros((4, WIDTH, HEIGHT))}, r"expected images \[N, 3, W, H\] with depths.*\[4, 6, 4\]"),
        ({"images": np.zeros((5, 4, WIDTH, HEIGHT))}, r"expected images \[N, 3, W, H\]"),
    ],
)
def test_wrong_shapes(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path, **changes), split="train", size=(HEIGHT, WIDTH))


def test_wrong_unit(tmp_path: Path) -> None:
    path = write(tmp_path, depths=np.full((5, WIDTH, HEIGHT), 2500.0, np.float32))
    with pytest.raises(DataError, match=r"depths\[0\]: expected depth in 0\.\.10 m"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))[0]


def test_missing_array(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["depths"]
    with pytest.raises(DataError, match="expected depths with 3 axes, found no such array"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"labeled\.mat: expected a MATLAB 7\.3 \(HDF5\) file, found one that does not"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


def test_mappings_of_the_release() -> None:
    """The published files: 894 labels, and a mapping to 13 classes that agrees with the folder's two labellings."""
    root = os.environ.get("GRADSURGERY_DATA")
    if not root:
        pytest.skip("GRADSURGERY_DATA is unset: the folder that holds nyuv2-sample/")
    from nyuv2.data.mat import _class_table

    sample = Path(root) / "nyuv2-sample"
    fine, coarse = _class_table(sample, 40), _class_table(sample, 13)
    assert len(fine) == len(coarse) == 895
    assert fine[0] == coarse[0] == IGNORE
    to_coarse = dict(zip(fine.tolist(), coarse.tolist(), strict=True))
    data = [open_dataset(sample, split="val", size=(240, 320), classes=classes) for classes in (40, 13)]
    for index in range(len(data[0])):
        labels, expected = (dataset[index]["segmentation"] for dataset in data)
        assert [to_coarse[label] for label in labels.flatten().tolist()] == expected.flatten().tolist()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_cut_anywhere_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"labeled\.mat: expected a MATLAB 7\.3 \(HDF5\) file, .*download it again"):
        open_dataset(path, split="train", size=(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((5, WIDTH, HEIGHT, 3), np.uint8)}, r"expected images \[N, 3, W, H\].*; write the axes as MATLAB"),
        ({"images": np.zeros((5, 3, WIDTH, HEIGHT), np.int32)}, r"images\[0\]: expected an image of dtype uint8.*; convert"),
        ({"depths": np.ones((5, WIDTH, HEIGHT), np.uint16)}, r"depths\[0\]: expected depth in metres of a floating.*; convert"),
        ({"labels": np.ones((5, WIDTH, HEIGHT), np.float32)}, r"labels\[0\]: expected integers in 0\.\.7, found float32"),
    ],
)
def test_faults_come_with_the_way_out(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path, **changes), split="train", size=(HEIGHT, WIDTH))[0]


def test_swapped_axes_of_everything(tmp_path: Path) -> None:
    row_first = {"images": np.zeros((5, 3, HEIGHT, WIDTH), np.uint8), "depths": np.ones((5, HEIGHT, WIDTH), np.float32),
                 "labels": np.ones((5, HEIGHT, WIDTH), np.uint16)}  # fmt: skip
    with pytest.raises(DataError, match=r"expected pictures wider than high.*found 4 × 6; swap the last two axes"):
        open_dataset(write(tmp_path, **row_first), split="train", size=(HEIGHT, WIDTH))
