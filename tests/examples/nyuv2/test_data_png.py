"""The PNG folder, written here in small, and the real sample where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE, DataError, MissingDataError, open_dataset
from PIL import Image

SIZE = (6, 8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train and two test pictures. Row 0 is class 39 of 40 in both splits, row 1 unlabelled in the test split."""
    for split, names in (("train", ("0004", "0024")), ("test", ("0035", "0063"))):
        for number, name in enumerate(names):
            fine = np.full(SIZE, 4, np.uint8)
            fine[0] = 39
            coarse = np.full(SIZE, 3, np.uint8)
            coarse[0] = 6
            if split == "test":
                fine[1] = coarse[1] = 255
            depth = np.full(SIZE, 2500 + 1000 * number, np.uint16)
            depth[2] = 0
            depth[3] = 10000
            save(tmp_path / split / "rgb" / f"{name}.png", np.full((*SIZE, 3), 51 * (number + 1), np.uint8))
            save(tmp_path / split / "depth" / f"{name}.png", depth)
            save(tmp_path / split / "seg40" / f"{name}.png", fine)
            save(tmp_path / split / "seg13" / f"{name}.png", coarse)
    return tmp_path


def test_samples(folder: Path) -> None:
    data = open_dataset(folder, split="val", size=SIZE)
    assert len(data) == 2
    assert data.info.tasks == ("segmentation", "depth")
    sample = data[1]
    assert set(sample) == {"image", "segmentation", "depth"}
    torch.testing.assert_close(sample["image"], torch.full((3, *SIZE), 0.4))
    assert sample["depth"][0, :, 0].tolist() == [3.5, 3.5, 0.0, 10.0, 3.5, 3.5]


@pytest.mark.parametrize(("classes", "last", "inside"), [(13, 6, 3), (40, 39, 4)])
def test_unlabelled_pixels(folder: Path, classes: int, last: int, inside: int) -> None:
    """Folded into class 39 of 40 in the training split, marked 255 in the test split."""
    train = open_dataset(folder, split="train", size=SIZE, classes=classes)
    assert train[0]["segmentation"][:, 0].tolist() == [IGNORE, inside, inside, inside, inside, inside]
    val = open_dataset(folder, split="val", size=SIZE, classes=classes)
    assert val[0]["segmentation"][:, 0].tolist() == [last, IGNORE, inside, inside, inside, inside]
    assert len(train.info.classes) == classes


def test_val_as_a_folder_name(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(open_dataset(folder, split="val", size=SIZE)) == 2


def test_training_on_13_classes_without_seg40_warns(folder: Path) -> None:
    for path in (folder / "train" / "seg40").iterdir():
        path.unlink()
    (folder / "train" / "seg40").rmdir()
    with pytest.warns(UserWarning, match="trained on as objects"):
        data = open_dataset(folder, split="train", size=SIZE)
    assert data[0]["segmentation"][0].tolist() == [6] * 8


def test_jpeg_images(folder: Path) -> None:
    for path in (folder / "test" / "rgb").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    sample = open_dataset(folder, split="val", size=SIZE)[0]
    torch.testing.assert_close(sample["image"], torch.full((3, *SIZE), 0.2), atol=0.02, rtol=0)


def test_two_images_of_one_name(folder: Path) -> None:
    path = folder / "test" / "rgb" / "0035.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"0035\.png: expected one file a sample, found 0035\.jpg too"):
        open_dataset(folder, split="val", size=SIZE)


def test_missing_partner(folder: Path) -> None:
    (folder / "test" / "seg13" / "0063.png").unlink()
    with pytest.raises(MissingDataError, match=r"seg13: expected 0063\.png as the partner of .*rgb.0063\.png"):
        open_dataset(folder, split="val", size=SIZE)


def test_missing_seg40(folder: Path) -> None:
    for path in (folder / "test" / "seg40").iterdir():
        path.unlink()
    (folder / "test" / "seg40").rmdir()
    assert len(open_dataset(folder, split="val", size=SIZE, classes=13)) == 2
    with pytest.raises(MissingDataError, match=r"test.seg40: expected a folder of \.png files, found none"):
        open_dataset(folder, split="val", size=SIZE, classes=40)


@pytest.mark.parametrize("kind", ["rgb", "depth", "seg13"])
def test_corrupt_image(folder: Path, kind: str) -> None:
    path = folder / "test" / kind / "0035.png"
    path.write_bytes(path.read_bytes()[:40])
    data = open_dataset(folder, split="val", size=SIZE)
    assert data[1]["image"].shape == (3, *SIZE)
    with pytest.raises(DataError, match=rf"{kind}.0035\.png: expected an image, found one that does not decode"):
        data[0]


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("rgb", np.zeros(SIZE, np.uint8), r"rgb.0035\.png: expected 8-bit RGB, found an image of mode L"),
        ("depth", np.zeros(SIZE, np.uint8), r"depth.0035\.png: expected 16-bit grey depth.*mode L"),
        ("depth", np.full(SIZE, 12500, np.uint16), r"depth.0035\.png: expected depth in 0\.\.10 m.*12\.5 m"),
        ("depth", np.ones((3, 4), np.uint16), r"depth.0035\.png: expected depth \[6, 8\] like the image"),
        ("seg13", np.zeros((*SIZE, 3), np.uint8), r"seg13.0035\.png: expected 8-bit class ids.*mode RGB"),
        ("seg13", np.full(SIZE, 39, np.uint8), r"seg13.0035\.png: expected class ids in 0\.\.12.*found \[39\]"),
    ],
)
def test_wrong_content_names_the_file(folder: Path, kind: str, array: np.ndarray, message: str) -> None:
    save(folder / "test" / kind / "0035.png", array)
    with pytest.raises(DataError, match=message):
        open_dataset(folder, split="val", size=SIZE)[0]


def test_labellings_of_different_size(folder: Path) -> None:
    save(folder / "train" / "seg40" / "0004.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(DataError, match=r"seg40.0004\.png: expected shape \[6, 8\] like .*seg13.0004\.png"):
        open_dataset(folder, split="train", size=SIZE)[0]


def test_empty_split(folder: Path) -> None:
    for path in folder.glob("test/*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"test: expected samples as .*found an empty split"):
        open_dataset(folder, split="val", size=SIZE)


def test_normals(folder: Path) -> None:
    colors = np.full((*SIZE, 3), 127, np.uint8)
    colors[1], colors[2], colors[3] = (128, 128, 128), (127, 128, 255), (255, 127, 127)
    for name in ("0035", "0063"):
        save(folder / "test" / "normal" / f"{name}.png", colors)
    data = open_dataset(folder, split="val", size=SIZE)
    assert data.info.tasks == ("segmentation", "depth", "normal")
    normal = data[0]["normal"]
    assert normal[:, [0, 1, 4, 5]].eq(0).all()
    torch.testing.assert_close(normal[:, 2, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.005, rtol=0)
    torch.testing.assert_close(normal[:, 3, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.005, rtol=0)
    save(folder / "test" / "normal" / "0035.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError, match=r"normal.0035\.png: expected normals of length 1.*mark invalid pixels by 0,0,0"):
        data[0]


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_a_file_cut_anywhere_is_refused_or_whole(folder: Path, ending: str) -> None:
    path = folder / "test" / "rgb" / f"0035{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    (folder / "test" / "rgb" / "0035.png").unlink()
    Image.fromarray(noise).save(path)
    whole, data = path.read_bytes(), open_dataset(folder, split="val", size=SIZE)
    expected, refused = data[0]["image"], 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = data[0]["image"]
        except DataError:
            refused += 1
        else:
            assert torch.equal(found, expected)
    assert refused > 0.8 * len(whole)


@pytest.fixture
def real_folder() -> Path:
    root = os.environ.get("GRADSURGERY_DATA")
    if not root:
        pytest.skip("GRADSURGERY_DATA is unset: the folder that holds nyuv2-sample/")
    return Path(root) / "nyuv2-sample"


@pytest.mark.parametrize(("split", "count"), [("train", 96), ("val", 16)])
@pytest.mark.parametrize("classes", [13, 40])
def test_real_sample(real_folder: Path, split: str, count: int, classes: int) -> None:
    data = open_dataset(real_folder, split=split, size=(120, 160), classes=classes)  # type: ignore[arg-type]
    assert len(data) == count
    seen: set[int] = set()
    for index in range(len(data)):
        sample = data[index]
        assert sample["image"].shape == (3, 120, 160)
        assert 0.05 < sample["image"].mean() < 0.95
        assert sample["depth"].min() > 0.5
        assert sample["depth"].max() <= 10
        seen |= set(np.unique(sample["segmentation"]).tolist())
    assert IGNORE in seen
    assert len(seen) > 0.7 * classes
    # The folded class is gone from the training split and real in the test split.
    if classes == 40:
        assert (39 in seen) == (split == "val")


def test_real_labels_are_not_folded_any_more(real_folder: Path) -> None:
    data = open_dataset(real_folder, split="train", size=(240, 320))
    ignored = np.mean([float(data[i]["segmentation"].eq(IGNORE).float().mean()) for i in range(20)])
    assert 0.05 < ignored < 0.45
