"""The sample contract: what is accepted, what is handed out, and what every violation says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE, DataError
from nyuv2.data.sample import make_sample

ORIGIN = {"image": "a.jpg", "segmentation": "b.png", "depth": "c.png", "normal": "d.npy"}


def arrays(**changes: Any) -> dict[str, Any]:
    """A valid picture of 2 × 3 pixels, with changes."""
    normal = np.zeros((2, 3, 3), np.float64)
    normal[0] = [0, 0.6, 0.8]
    picture = {
        "image": np.arange(18, dtype=np.uint8).reshape(2, 3, 3),
        "segmentation": np.array([[0, 12, IGNORE], [1, 2, 3]], np.uint8),
        "depth": np.array([[0.0, 1.5, 10.0], [2.0, 2.5, 3.0]], np.float32),
        "normal": normal,
        "classes": 13,
        "origin": ORIGIN,
    }
    return picture | changes


def test_a_valid_picture() -> None:
    sample = make_sample(**arrays())
    assert {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()} == {
        "image": (torch.float32, (3, 2, 3)),
        "segmentation": (torch.int64, (2, 3)),
        "depth": (torch.float32, (1, 2, 3)),
        "normal": (torch.float32, (3, 2, 3)),
    }
    assert sample["image"][2, 0, 1] == pytest.approx(5 / 255)
    assert sample["segmentation"].tolist() == [[0, 12, IGNORE], [1, 2, 3]]
    assert sample["depth"][0, 0].tolist() == [0.0, 1.5, 10.0]
    torch.testing.assert_close(sample["normal"][:, 0, 0], torch.tensor([0.0, 0.6, 0.8]))
    assert sample["normal"][:, 1].eq(0).all()


def test_no_normals_no_key() -> None:
    assert "normal" not in make_sample(**arrays(normal=None))


def test_normals_are_scaled_to_unit_length() -> None:
    normal = np.zeros((2, 3, 3), np.float32)
    normal[0, 0] = [0.0, 0.45, 0.6]  # length 0.75, as interpolation between neighbors leaves it
    sample = make_sample(**arrays(normal=normal))
    torch.testing.assert_close(sample["normal"][:, 0, 0], torch.tensor([0.0, 0.6, 0.8]))
    assert sample["normal"][:, 0, 1].eq(0).all()


def test_floating_point_images_keep_their_values() -> None:
    image = np.linspace(0, 1, 18).reshape(2, 3, 3)
    sample = make_sample(**arrays(image=image))
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0), image, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((3, 2, 3, 1), np.uint8)}, r"a\.jpg: expected an image \[H, W, 3\], found shape \[3, 2, 3, 1\]"),
        ({"image": np.zeros((0, 3, 3), np.uint8)}, r"a\.jpg: expected an image with at least one pixel"),
        ({"image": np.zeros((2, 3, 4), np.uint8)}, r"a\.jpg: expected an image \[H, W, 3\], found shape \[2, 3, 4\]"),
        ({"image": np.zeros((2, 3, 3), np.int32)}, r"a\.jpg: expected an image of dtype uint8 or floating.*int32"),
        ({"image": np.full((2, 3, 3), 200.0)}, r"a\.jpg: expected floating-point RGB in 0\.\.1, found 200\.\.200"),
        ({"image": np.full((2, 3, 3), np.nan)}, r"a\.jpg: expected an image without NaN"),
        ({"segmentation": np.zeros((3, 2), np.uint8)}, r"b\.png: expected class ids \[2, 3\] like the image, found.*\[3, 2\]"),
        ({"segmentation": np.full((2, 3), 13)}, r"b\.png: expected class ids in 0\.\.12, or 255.*found \[13\]"),
        ({"segmentation": np.full((2, 3), -1)}, r"b\.png: expected class ids in 0\.\.12, or 255.*found \[-1\]"),
        ({"segmentation": np.full((2, 3), 1.5)}, r"b\.png: expected integral class ids"),
        ({"segmentation": np.full((2, 3), np.nan)}, r"b\.png: expected class ids without NaN"),
        ({"segmentation": np.zeros((2, 3), bool)}, r"b\.png: expected class ids of a numeric dtype, found bool"),
        ({"depth": np.ones((2, 2), np.float32)}, r"c\.png: expected depth \[2, 3\] like the image, found shape \[2, 2\]"),
        ({"depth": np.ones((2, 3), np.uint16)}, r"c\.png: expected depth in metres of a floating-point dtype, found uint16"),
        ({"depth": np.full((2, 3), 2500.0)}, r"c\.png: expected depth in 0\.\.10 m.*2500\.\.2500 m; check the unit"),
        ({"depth": np.full((2, 3), -1.0)}, r"c\.png: expected depth in 0\.\.10 m.*found -1\.\.-1 m"),
        ({"depth": np.full((2, 3), np.inf)}, r"c\.png: expected depth without NaN or infinity"),
        ({"normal": np.zeros((2, 3), np.float32)}, r"d\.npy: expected normals \[2, 3, 3\] like the image, found shape \[2, 3\]"),
        ({"normal": np.zeros((2, 3, 3), np.uint8)}, r"d\.npy: expected normals of a floating-point dtype, found uint8"),
        ({"normal": np.full((2, 3, 3), 255.0)}, r"d\.npy: expected normals of length 1, or 0,0,0.*found length 441"),
        ({"normal": np.full((2, 3, 3), np.nan)}, r"d\.npy: expected normals without NaN"),
    ],
)  # fmt: skip
def test_violations_name_the_file_and_both_sides(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_sample(**arrays(**changes))
