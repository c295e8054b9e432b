"""Drawings and the data set: functions of seed, split, epoch and index; labels that fit the turned picture."""

import numpy as np
import pytest
import torch
from cifar10.data import CLASSES_OF, TASKS, CIFAR10Dataset, open_images
from cifar10.data.images import CLASSES, COARSE_CLASSES, COARSE_OF_FINE, Images
from cifar10.data.shapes import BOX, DRAWINGS, ELLIPSE, TRIANGLE, Part, coverage
from torch.utils.data import DataLoader


@pytest.fixture(scope="module")
def drawings() -> Images:
    return open_images("generated", "train", count=20, seed=0)


def _data(images: Images, **changes: object) -> CIFAR10Dataset:
    return CIFAR10Dataset(images, **({"tasks": TASKS, "train": True, "augment": False, "seed": 0} | changes))  # type: ignore[arg-type]


def test_vehicles_and_animals() -> None:
    vehicles = {name for name, coarse in zip(CLASSES, COARSE_OF_FINE, strict=True) if COARSE_CLASSES[coarse] == "vehicle"}
    assert vehicles == {"airplane", "automobile", "ship", "truck"}
    assert len(DRAWINGS) == len(CLASSES) == 10


def test_drawings_are_functions_of_seed_split_and_index(drawings: Images) -> None:
    again = open_images("generated", "train", count=7, seed=0)
    np.testing.assert_array_equal(again.pixels, drawings.pixels[:7])
    for seed, split in ((1, "train"), (0, "val")):
        other = open_images("generated", split, count=7, seed=seed)  # type: ignore[arg-type]
        assert not (other.pixels == again.pixels).all(axis=(1, 2, 3)).any()
    assert drawings.pixels.shape == (20, 3, 32, 32)
    assert drawings.labels.tolist() == 2 * list(range(10))
    assert drawings.pixels.reshape(20, -1).std(axis=1).min() > 8  # none is blank


def test_shapes_cover_their_areas() -> None:
    across, down = np.meshgrid(*(2 * [(np.arange(200) + 0.5) / 100 - 1]))
    parts = (Part(ELLIPSE, 0.1, 0.1, 0.5, 0.3), Part(BOX, 0.0, 0.0, 0.5, 0.3, angle=0.7), Part(TRIANGLE, 0.1, -0.1, 0.5, 0.3))
    areas = coverage(parts, across, down, 0.01).sum(axis=(1, 2)) * 0.01**2
    assert areas == pytest.approx([np.pi * 0.5 * 0.3, 4 * 0.5 * 0.3, 2 * 0.5 * 0.3], rel=0.02)


def test_labels_fit_the_turned_picture(drawings: Images) -> None:
    data, upright = _data(drawings), _data(drawings, tasks=("fine", "coarse"))
    turns = []
    for index in range(len(data)):
        sample, plain = data[index], upright[index]
        assert "rotation" not in plain
        expected = torch.from_numpy(drawings.pixels[index].astype(np.float32) / 255)
        assert torch.equal(plain["image"], expected)
        turn = int(sample["rotation"])
        back = sample["image"]
        for _ in range(turn):  # a clockwise quarter: the bottom row becomes the left column
            back = back.flip(1).transpose(1, 2)
        assert torch.equal(back, expected)
        assert sample["fine"] == plain["fine"] == drawings.labels[index]
        assert sample["coarse"] == COARSE_OF_FINE[int(sample["fine"])]
        turns.append(turn)
    assert set(turns) == {0, 1, 2, 3}
    assert data.labels("rotation").tolist() == turns


def test_turns_change_with_epochs_in_training_alone(drawings: Images) -> None:
    for train in (True, False):
        data = _data(drawings, train=train)
        before = data.labels("rotation")
        data.set_epoch(1)
        assert torch.equal(before, data.labels("rotation")) != train
        data.set_epoch(0)
        assert torch.equal(before, data.labels("rotation"))


def test_augmentation_moves_pictures_and_no_label(drawings: Images) -> None:
    plain, moved = _data(drawings, tasks=("fine",)), _data(drawings, tasks=("fine",), augment=True)
    first = [moved[index]["image"] for index in range(20)]
    assert sum(torch.equal(first[index], plain[index]["image"]) for index in range(20)) < 3
    assert torch.equal(moved.labels("fine"), plain.labels("fine"))
    moved.set_epoch(1)
    assert sum(torch.equal(first[index], moved[index]["image"]) for index in range(20)) < 3
    moved.set_epoch(0)
    assert all(torch.equal(first[index], moved[index]["image"]) for index in range(20))
    turned = _data(drawings, augment=True)
    assert torch.equal(turned.labels("rotation"), _data(drawings).labels("rotation"))


def test_a_shift_brings_in_zeros_and_keeps_the_rest(drawings: Images) -> None:
    pixels = np.full((1, 3, 32, 32), 255, np.uint8)
    data = _data(Images("white", pixels, np.zeros(1, np.int64)), tasks=("fine",), augment=True)
    seen = set()
    for epoch in range(30):
        data.set_epoch(epoch)
        image = data[0]["image"][0]
        rows, columns = int(image.any(1).sum()), int(image.any(0).sum())
        assert image.sum() == rows * columns
        assert min(rows, columns) >= 28
        seen.add((rows, columns))
    assert len(seen) > 8


def test_indices_outside(drawings: Images) -> None:
    for index in (20, -1):
        with pytest.raises(IndexError, match=rf"expected 0\.\.19, found {index}"):
            _data(drawings)[index]


def test_persistent_workers_see_the_epoch(drawings: Images) -> None:
    data = _data(drawings, augment=True)
    loader = DataLoader(data, batch_size=10, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = list(loader)
        for index in (0, 13):
            sample = data[index]
            assert all(torch.equal(batches[index // 10][name][index % 10], value) for name, value in sample.items())


def test_every_task_has_classes() -> None:
    assert {task: len(names) for task, names in CLASSES_OF.items()} == {"fine": 10, "coarse": 2, "rotation": 4}
