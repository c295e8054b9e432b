"""open_dataset and the data set it returns: recognition, epochs, workers, and errors at the door."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nyuv2.data import DataError, MissingDataError, open_dataset
from nyuv2.data.dataset import NYUv2Dataset
from nyuv2.data.sample import CLASSES_13, DataInfo, Sample
from torch.utils.data import DataLoader

SIZE = (24, 32)


def equal(a: Sample, b: Sample) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r'expected "generated", the path of .*; found nothing at .*nowhere'):
        open_dataset(tmp_path / "nowhere", split="train", size=SIZE)


def test_missing_data_can_be_caught_as_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "nowhere", split="train", size=SIZE)


@pytest.mark.parametrize("inside", [[], ["readme.txt", "images"]])
def test_unrecognized_folder(tmp_path: Path, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    found = "nothing in it" if not inside else r"\['images', 'readme\.txt'\]"
    with pytest.raises(DataError, match=rf"--data: expected .*train/rgb.*; found .* with {found}"):
        open_dataset(tmp_path, split="train", size=SIZE)


def test_unrecognized_file(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"--data: expected .*; found the file .*data\.zip"):
        open_dataset(tmp_path / "data.zip", split="train", size=SIZE)


@pytest.mark.parametrize("kind", ["image", "rgb"])
def test_missing_split(tmp_path: Path, kind: str) -> None:
    (tmp_path / "train" / kind).mkdir(parents=True)
    with pytest.raises(MissingDataError, match=rf"(val|test).{kind}: expected a folder"):
        open_dataset(tmp_path, split="val", size=SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, r'split: expected "train" or "val", found \'test\''),
        ({"seed": -1}, "seed: expected a non-negative number, found -1"),
        ({"count": 0}, "count: expected at least one sample, found 0"),
        ({"count": -3}, "count: expected at least one sample, found -3"),
        ({"size": (0, 32)}, "size: expected"),
        ({"classes": 14}, "classes: the generated data set offers 13 classes, found 14; pass classes=13"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset("generated", **({"split": "train", "size": SIZE} | changes))


def test_indices_outside() -> None:
    data = open_dataset("generated", split="train", size=SIZE, count=3)
    for index in (3, -1):
        with pytest.raises(IndexError, match=rf"expected 0\.\.2, found {index}"):
            data[index]


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    data = open_dataset("generated", split="train", size=SIZE, count=3, augment=True)
    first = [data[i] for i in range(3)]
    data.set_epoch(1)
    second = [data[i] for i in range(3)]
    assert not any(equal(a, b) for a, b in zip(first, second, strict=True))
    fresh = open_dataset("generated", split="train", size=SIZE, count=3, augment=True)
    fresh.set_epoch(1)
    assert all(equal(second[i], fresh[i]) for i in (2, 0, 1))
    data.set_epoch(0)
    assert all(equal(first[i], data[i]) for i in (1, 2, 0))


def test_without_augmentation_epochs_are_equal() -> None:
    data = open_dataset("generated", split="val", size=SIZE, count=2)
    before = data[1]
    data.set_epoch(5)
    assert equal(before, data[1])


def test_augmentation_has_its_own_seed() -> None:
    class Constant:
        info = DataInfo("constant", CLASSES_13, ("depth",))

        def __len__(self) -> int:
            return 1

        def load(self, index: int) -> Sample:
            picture = open_dataset("generated", split="val", size=SIZE, count=1)
            return picture[index]

    one, other = (NYUv2Dataset(Constant(), size=SIZE, augment=True, seed=seed, count=None, keep=False) for seed in (0, 1))
    assert not equal(one[0], other[0])


class Counting:
    """A source that counts how often it is asked."""

    info = DataInfo("counting", CLASSES_13, ("segmentation", "depth"))

    def __init__(self) -> None:
        self.loads = 0

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> Sample:
        self.loads += 1
        return {
            "image": torch.full((3, 8, 8), 0.1 * index),
            "segmentation": torch.full((8, 8), index),
            "depth": torch.full((1, 8, 8), 1.0 + index),
        }


@pytest.mark.parametrize(("keep", "loads"), [(True, 4), (False, 8)])
def test_kept_samples_are_loaded_once(keep: bool, loads: int) -> None:
    source = Counting()
    data = NYUv2Dataset(source, size=(8, 8), augment=False, seed=0, count=None, keep=keep)
    for _ in range(2):
        assert [int(data[i]["segmentation"][0, 0]) for i in range(4)] == [0, 1, 2, 3]
    assert source.loads == loads


def test_what_a_caller_does_to_a_sample_does_not_reach_the_kept_one() -> None:
    data = NYUv2Dataset(Counting(), size=(8, 8), augment=False, seed=0, count=None, keep=True)
    for value in data[2].values():
        value.zero_()
    assert np.unique(data[2]["depth"]).tolist() == [3.0]
    assert np.unique(data[2]["segmentation"]).tolist() == [2]
    assert np.unique(data[2]["image"]).tolist() == [pytest.approx(0.2)]


def test_kept_samples_do_not_travel_in_pickles() -> None:
    data = NYUv2Dataset(Counting(), size=(8, 8), augment=False, seed=0, count=None, keep=True)
    empty = len(pickle.dumps(data))
    expected = [data[i] for i in range(4)]
    assert len(pickle.dumps(data)) == pytest.approx(empty, abs=16)
    copy = pickle.loads(pickle.dumps(data))
    assert all(equal(copy[i], expected[i]) for i in range(4))


def test_default_collation() -> None:
    data = open_dataset("generated", split="train", size=SIZE, count=4, augment=True)
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "image": (4, 3, *SIZE),
        "segmentation": (4, *SIZE),
        "depth": (4, 1, *SIZE),
        "normal": (4, 3, *SIZE),
    }


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_see_the_epoch_and_agree_with_this_process(context: str) -> None:
    data = open_dataset("generated", split="train", size=SIZE, count=4, augment=True)
    loader = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True, multiprocessing_context=context)
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = list(loader)
        for index in range(4):
            sample = {key: value[index % 2] for key, value in batches[index // 2].items()}
            assert equal(sample, data[index])
