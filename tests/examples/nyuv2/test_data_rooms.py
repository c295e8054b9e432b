"""The generated rooms: exact geometry, true labels, determinism, and colors that do not give the classes away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nyuv2.data import DataError, open_dataset
from nyuv2.data.rooms import Picture, Split, take_picture
from nyuv2.data.sample import CLASSES_13

SIZE = (60, 80)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [take_picture(0, "train", index, SIZE) for index in range(40)]


def test_normals_agree_with_the_depth_around_them(pictures: list[Picture]) -> None:
    """On flat patches the tangents from the depth's finite differences are perpendicular to the normal."""
    checked = 0
    for picture in pictures[:12]:
        hits, (x, y) = picture.hits, picture.camera.rays()
        points = np.stack([x * hits.depth, y[:, None] * hits.depth, -hits.depth]).astype(np.float64)
        across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]  # [3, H-2, W-2]
        down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
        estimate = np.cross(down, across, axis=0)
        estimate /= np.linalg.norm(estimate, axis=0)
        flat = np.ones(estimate.shape[1:], bool)
        for rows in (slice(None, -2), slice(1, -1), slice(2, None)):
            for columns in (slice(None, -2), slice(1, -1), slice(2, None)):
                flat &= hits.solid[rows, columns] == hits.solid[1:-1, 1:-1]
                flat &= (hits.normal[:, rows, columns] == hits.normal[:, 1:-1, 1:-1]).all(axis=0)
        cosine = (estimate * hits.normal[:, 1:-1, 1:-1]).sum(axis=0)[flat]
        assert cosine.min() > np.cos(np.radians(0.5))
        checked += int(flat.sum())
    assert checked > 0.4 * 12 * SIZE[0] * SIZE[1]


def test_normals_are_unit_vectors_that_face_the_camera(pictures: list[Picture]) -> None:
    for picture in pictures:
        x, y = picture.camera.rays()
        normal = picture.hits.normal
        np.testing.assert_allclose(np.square(normal).sum(axis=0), 1, atol=1e-5)
        along = normal[0] * x + normal[1] * y[:, None] - normal[2]
        assert along.max() < 1e-3


def test_depth_is_that_of_a_room(pictures: list[Picture]) -> None:
    depth = np.stack([picture.hits.depth for picture in pictures])
    assert depth.min() > 0.2
    assert depth.max() < 9
    assert 1.5 < np.median(depth) < 4


def test_all_classes_appear_and_none_fills_the_pictures(pictures: list[Picture]) -> None:
    labels = np.stack([picture.segmentation for picture in pictures])
    share = np.bincount(labels.ravel(), minlength=13) / labels.size
    assert len(share) == 13
    assert share.min() > 0.005, dict(zip(CLASSES_13, share.round(4), strict=True))
    assert share.max() < 0.5
    classes_per_picture = [len(np.unique(picture.segmentation)) for picture in pictures]
    assert np.mean(classes_per_picture) > 6


def test_floors_are_below_and_ceilings_above(pictures: list[Picture]) -> None:
    """The labels follow the geometry: in the world, floors face up, ceilings down, walls sideways."""
    expected = {"floor": 1.0, "ceiling": -1.0, "wall": 0.0}
    faces: dict[str, list[np.ndarray]] = {name: [] for name in expected}
    for picture in pictures:
        up = np.einsum("ij,jhw->ihw", picture.camera.rotation, picture.hits.normal)[1]
        for name in expected:
            faces[name].append(up[picture.segmentation == CLASSES_13.index(name)])
    for name, value in expected.items():
        right = np.abs(np.concatenate(faces[name]) - value) < 1e-3
        assert right.mean() > 0.98, name  # the rest: edges of rugs and tops of doors


def test_color_does_not_identify_the_class() -> None:
    """The best class for every color bin of 60 rooms beats the majority class on 30 others by almost nothing."""

    def pixels(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
        shown = [take_picture(0, split, index, (30, 40)) for index in range(count)]
        color = np.stack([p.image for p in shown]).reshape(-1, 3) // 43  # 6 levels a channel
        return color @ np.array([36, 6, 1]), np.stack([p.segmentation for p in shown]).ravel()

    bins, labels = pixels("train", 60)
    counts = np.zeros((216, 13))
    np.add.at(counts, (bins, labels), 1)
    bins, labels = pixels("val", 30)
    accuracy = (counts.argmax(axis=1)[bins] == labels).mean()
    majority = np.bincount(labels).max() / labels.size
    assert accuracy < majority + 0.05


def test_the_room_does_not_depend_on_the_size() -> None:
    """Every third pixel center of a picture three times as large is a pixel center of the small one."""
    small, large = take_picture(3, "train", 7, (30, 40)), take_picture(3, "train", 7, (90, 120))
    same = np.isclose(small.hits.depth, large.hits.depth[1::3, 1::3], atol=1e-4)
    assert same.mean() > 0.998  # rays along an edge may fall on either side
    assert (small.segmentation == large.segmentation[1::3, 1::3]).mean() > 0.998


def test_samples_do_not_depend_on_the_order_of_access() -> None:
    forward, backward = (open_dataset("generated", split="train", size=SIZE, count=6) for _ in range(2))
    one = [forward[index] for index in range(6)]
    other = [backward[index] for index in reversed(range(6))][::-1]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() == {"image", "segmentation", "depth", "normal"}
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_train_val_seeds_and_indices_are_different_rooms() -> None:
    streams: list[tuple[int, Split, int]] = [(0, "train", 0), (0, "val", 0), (1, "train", 0), (0, "train", 1)]
    depths = [take_picture(*stream, SIZE).hits.depth for stream in streams]
    for i, a in enumerate(depths):
        for b in depths[:i]:
            assert np.abs(a - b).mean() > 0.05


def test_the_image_shows_what_the_labels_say(pictures: list[Picture]) -> None:
    """Neighbors across a class border differ more in color than neighbors within a class."""
    within, across = [], []
    for picture in pictures:
        step = np.abs(np.diff(picture.image.astype(int), axis=1)).sum(axis=2)
        border = np.diff(picture.segmentation, axis=1) != 0
        within.append(step[~border].mean())
        across.append(step[border].mean())
    assert np.mean(across) > 2 * np.mean(within)


def test_count_and_size() -> None:
    data = open_dataset("generated", split="val", size=(24, 36), count=3)
    assert len(data) == 3
    assert data.info.classes == CLASSES_13
    assert data.info.tasks == ("segmentation", "depth", "normal")
    assert data[2]["image"].shape == (3, 24, 36)
    assert len(open_dataset("generated", split="val", size=SIZE)) == 128


def test_forty_classes_are_not_offered() -> None:
    with pytest.raises(DataError, match="generated data set offers 13 classes, found 40"):
        open_dataset("generated", split="train", size=SIZE, classes=40)


def test_tiny_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="size"):
        open_dataset("generated", split="train", size=(4, 80))
