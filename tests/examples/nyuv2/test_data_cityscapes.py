"""The official tree of Cityscapes, written here in small: what is handed out, and what every fault is answered with."""

# ruff: noqa: E501 - a fault and its message stand on one line
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE, DataError, MissingDataError, open_dataset
from nyuv2.data.sample import CLASSES_7, CLASSES_19
from PIL import Image

SIZE = (8, 16)
BASELINE, FOCAL = 0.25, 2000.0
# From the release's table of labels: id -> train id, and id -> category (flat 0, construction 1, …), of what is evaluated.
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16,
            32: 17, 33: 18}  # fmt: skip
CATEGORY = {7: 0, 8: 0, 11: 1, 12: 1, 13: 1, 17: 2, 19: 2, 20: 2, 21: 3, 22: 3, 23: 4, 24: 5, 25: 5, 26: 6, 27: 6, 28: 6, 31: 6, 32: 6,
            33: 6}  # fmt: skip


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def file(root: Path, kind: str, ending: str, split: str = "val", name: str = "lindau_000000_000019") -> Path:
    return root / kind / split / name.partition("_")[0] / f"{name}_{ending}"


def instances() -> np.ndarray:
    """A car of 2 × 4 pixels, another of 1, an L of persons' pixels, a crowd, and road."""
    ids = np.full(SIZE, 7, np.uint16)
    ids[0:2, 0:4] = 26001
    ids[7, 15] = 26000
    ids[4:7, 5] = 24003
    ids[6, 6:8] = 24003
    ids[3, 10:14] = 26  # a crowd of cars
    return ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three train pictures in two cities, one val picture; labels 0..33 over the first rows, disparity by column."""
    names = {"train": ("aachen_000010_000019", "aachen_000002_000019", "bochum_000000_000313"), "val": ("lindau_000000_000019",)}
    for split, of_split in names.items():
        for number, name in enumerate(of_split):
            labels = np.arange(128, dtype=np.uint8).reshape(SIZE)
            labels[labels > 33] = 255
            disparity = np.broadcast_to(np.arange(16, dtype=np.uint16) * 256 * 4 + 1, SIZE).copy()
            disparity[0] = 0  # invalid
            camera = {"extrinsic": {"baseline": BASELINE, "pitch": 0.03}, "intrinsic": {"fx": FOCAL, "fy": 2225.5}}
            save(file(tmp_path, "leftImg8bit", "leftImg8bit.png", split, name), np.full((*SIZE, 3), 51 * number, np.uint8))
            save(file(tmp_path, "gtFine", "gtFine_labelIds.png", split, name), labels)
            save(file(tmp_path, "gtFine", "gtFine_color.png", split, name), np.zeros((*SIZE, 4), np.uint8))
            save(file(tmp_path, "gtFine", "gtFine_instanceIds.png", split, name), instances())
            save(file(tmp_path, "disparity", "disparity.png", split, name), disparity)
            path = file(tmp_path, "camera", "camera.json", split, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(camera))
    return tmp_path


def test_every_label_has_its_class(root: Path) -> None:
    for classes, table, names in ((None, TRAIN_ID, CLASSES_19), (7, CATEGORY, CLASSES_7)):
        data = open_dataset(root, split="val", size=SIZE, classes=classes)
        assert data.info.classes == names
        found = data[0]["segmentation"].flatten().tolist()
        assert found == [table.get(label, IGNORE) for label in range(34)] + [IGNORE] * 94
    with pytest.raises(DataError, match="the tree of Cityscapes offers 19 or 7 classes, found 13"):
        open_dataset(root, split="val", size=SIZE, classes=13)


def test_pictures_of_all_cities_in_order(root: Path) -> None:
    data = open_dataset(root, split="train", size=SIZE)
    assert data.info.tasks == ("segmentation", "depth", "instance")
    assert [round(float(data[i]["image"].mean() * 255)) for i in range(len(data))] == [51, 0, 102]  # 2 < 10, aachen < bochum


def test_metres_from_baseline_and_focal_length(root: Path) -> None:
    data = open_dataset(root, split="val", size=SIZE)
    assert (data.info.depth.unit, data.info.depth.maximum, data.info.depth.inverse) == ("m", 80.0, False)
    depth = data[0]["depth"][0]
    assert depth[0].eq(0).all()
    assert depth[1, 0] == 0  # disparity 0: infinitely far
    assert depth[1, 1] == 0  # 125 m: too far to be measured
    for column in range(2, 16):
        assert depth[1, column].item() == pytest.approx(BASELINE * FOCAL / (4 * column))


def test_disparity_where_there_is_no_camera(root: Path) -> None:
    shutil.rmtree(root / "camera")
    data = open_dataset(root, split="val", size=SIZE)
    assert (data.info.depth.unit, data.info.depth.inverse) == ("px", True)
    assert data[0]["depth"][0, 1].tolist() == [4.0 * column for column in range(16)]
    assert data[0]["depth"][0, 0].eq(0).all()


def test_without_disparity_there_is_no_depth_task(root: Path) -> None:
    shutil.rmtree(root / "disparity")
    data = open_dataset(root, split="train", size=(4, 8), augment=True)
    assert data.info.tasks == ("segmentation", "instance")
    assert set(data[0]) == {"image", "segmentation", "instance"}


def test_offsets_lead_to_the_centers(root: Path) -> None:
    offset = open_dataset(root, split="val", size=SIZE)[0]["instance"].numpy()
    ids = instances()
    assert np.isnan(offset[:, ids < 1000]).all()  # road and crowds
    for number in (26001, 26000, 24003):
        pixels = np.argwhere(ids == number)
        for y, x in pixels:
            expected = pixels.mean(0) - (y, x)
            np.testing.assert_allclose(offset[:, y, x], expected, atol=1e-6)
    assert offset[:, 0, 0].tolist() == [0.5, 1.5]
    assert offset[:, 7, 15].tolist() == [0.0, 0.0]


CAMERA = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2000.0}}
Fault = Callable[[Path], Any]


def plant(kind: str, ending: str, array: np.ndarray) -> Fault:
    return lambda root: save(file(root, kind, ending), array)


def cut(kind: str, ending: str) -> Fault:
    def fault(root: Path) -> None:
        path = file(root, kind, ending)
        path.write_bytes(path.read_bytes()[:-30])

    return fault


def camera(text: str) -> Fault:
    return lambda root: file(root, "camera", "camera.json").write_text(text)


# What is done to a whole tree, and the message: a star stands for anything.
LABELS, INSTANCES, DISPARITY, LEFT = "gtFine_labelIds.png", "gtFine_instanceIds.png", "disparity.png", "leftImg8bit.png"
FAULTS: dict[str, tuple[Fault, str]] = {
    "grey image": (plant("leftImg8bit", LEFT, np.zeros(SIZE, np.uint8)), "leftImg8bit.png: expected 8-bit RGB, found an image of mode L; convert"),
    "truncated image": (cut("leftImg8bit", LEFT), "leftImg8bit.png: expected an image, found one that does not decode*restore the file"),
    "truncated labels": (cut("gtFine", LABELS), "labelIds.png: expected an image, found one that does not decode*restore the file"),
    "truncated instances": (cut("gtFine", INSTANCES), "instanceIds.png: expected an image, found one that does not decode*restore"),
    "truncated disparity": (cut("disparity", DISPARITY), "disparity.png: expected an image, found one that does not decode*restore"),
    "unknown label": (plant("gtFine", LABELS, np.full(SIZE, 34, np.uint8)), "labelIds.png: expected label ids in 0..33, found [34]; use"),
    "16-bit labels": (plant("gtFine", LABELS, np.zeros(SIZE, np.uint16)), "labelIds.png: expected 8-bit label ids, found an image of mode I;16; convert"),
    "8-bit instances": (plant("gtFine", INSTANCES, np.zeros(SIZE, np.uint8)), "instanceIds.png: expected 16-bit instance ids, found*mode L; convert"),
    "instance of no class": (plant("gtFine", INSTANCES, np.full(SIZE, 34000, np.uint16)), "instanceIds.png: expected instance ids in 0..33 or 24000..33999, found [34000]; use"),
    "instance of stuff": (plant("gtFine", INSTANCES, np.full(SIZE, 7001, np.uint16)), "instanceIds.png: expected instance ids*found [7001]; use"),
    "swapped axes": (plant("gtFine", LABELS, np.zeros(SIZE[::-1], np.uint8)), "labelIds.png: expected class ids [8, 16] like the image, found shape [16, 8]; swap height and width"),
    "small instances": (plant("gtFine", INSTANCES, np.zeros((2, 2), np.uint16)), "instanceIds.png: expected instances [8, 16] like the image, found shape [2, 2]; restore the pair"),
    "small disparity": (plant("disparity", DISPARITY, np.zeros((2, 2), np.uint16)), "disparity.png: expected depth [8, 16] like the image"),
    "8-bit disparity": (plant("disparity", DISPARITY, np.zeros(SIZE, np.uint8)), "disparity.png: expected 16-bit grey disparity, found*mode L; convert"),
    "half a JSON": (camera("{"), "camera.json: expected a JSON object with the numbers extrinsic.baseline*restore the file"),
    "lacking focal length": (camera(json.dumps({"extrinsic": {"baseline": 0.2}, "intrinsic": {}})), "camera.json: expected a JSON object*restore"),
    "list as camera": (camera("[1]"), "camera.json: expected a JSON object*restore"),
    "negative baseline": (camera(json.dumps(CAMERA | {"extrinsic": {"baseline": -0.2}})), "camera.json: expected*above 0, found*-0.2*restore"),
    "infinite": (camera('{"extrinsic": {"baseline": Infinity}, "intrinsic": {"fx": 1}}'), "camera.json: expected*above 0, found*restore"),
    "no labels": (lambda root: file(root, "gtFine", LABELS).unlink(), "gtFine*expected lindau/lindau_000000_000019_gtFine_labelIds.png as the partner of*restore it or remove"),
    "no instances": (lambda root: file(root, "gtFine", INSTANCES).unlink(), "gtFine*expected lindau/lindau_000000_000019_gtFine_instanceIds.png as the partner of*restore"),
    "no image": (lambda root: file(root, "leftImg8bit", LEFT).unlink(), "leftImg8bit*expected lindau/lindau_000000_000019_leftImg8bit.png as the partner of*restore"),
    "no disparity": (lambda root: file(root, "disparity", DISPARITY).unlink(), "disparity*expected lindau*as the partner of*1 of 1*restore"),
    "no camera": (lambda root: file(root, "camera", "camera.json").unlink(), "camera*expected lindau*as the partner of*restore"),
    "no split of gtFine": (lambda root: shutil.rmtree(root / "gtFine/val"), "gtFine/val: expected a folder of _gtFine_labelIds.png files, found none; restore"),
    "no leftImg8bit": (lambda root: shutil.rmtree(root / "leftImg8bit"), "leftImg8bit/val: expected a folder of _leftImg8bit.png files, found none; restore"),
    "no split of disparity": (lambda root: shutil.rmtree(root / "disparity/val"), "disparity/val: expected a folder of _disparity.png files"),
    "empty": (lambda root: [shutil.rmtree(city) for city in root.glob("*/val/*")], "expected samples as leftImg8bit/val/*/*_leftImg8bit.png*found an empty split; check the download"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_the_file_and_the_way_out(root: Path, name: str) -> None:
    fault, message = FAULTS[name]
    assert open_dataset(root, split="val", size=SIZE)[0].keys() == {"image", "segmentation", "depth", "instance"}
    fault(root)
    pattern = ".*".join(re.escape(part) for part in message.split("*"))
    with pytest.raises(DataError, match=f"(?s){pattern}") as caught:
        open_dataset(root, split="val", size=SIZE)[0]
    assert isinstance(caught.value, MissingDataError) == name.startswith("no ")


def test_augmented_batches_are_finite_where_there_is_truth(root: Path) -> None:
    data = open_dataset(root, split="train", size=(6, 12), augment=True)
    for epoch in range(4):
        data.set_epoch(epoch)
        for index in range(len(data)):
            sample = data[index]
            assert sample["instance"].shape == (2, 6, 12)
            assert torch.equal(sample["instance"][0].isnan(), sample["instance"][1].isnan())
            assert all(value.isfinite().all() for key, value in sample.items() if key != "instance")


def test_all_tasks_are_trained_from_the_command_line(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from nyuv2 import train

    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--data", str(root), "--tasks", "segmentation", "depth", "instance", "--size", "32", "64", "--epochs", "1"]
    assert train.main([*options, "--batch-size", "2", "--channels", "8", "--device", "cpu", "--augment", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert all(metrics[f"{who}/instance/absolute_error_px"] > 0 for who in ("val", "floor"))
    assert metrics["floor/depth/absolute_error_m"] < 80
    assert "no offset" in (out / "note.md").read_text()
