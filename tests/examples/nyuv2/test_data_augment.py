"""Augmentation: exact expectations for what crop, zoom, flip and color do to each kind of data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nyuv2.data.augment import View, draw_view, show
from nyuv2.data.sample import IGNORE, Sample, positions

HEIGHT, WIDTH = 12, 16


@pytest.fixture
def sample() -> Sample:
    """Random content with invalid depth and normals in the first two rows and IGNORE in the first column."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(3, HEIGHT, WIDTH, generator=generator), dim=0)
    depth = 1 + 8 * torch.rand(1, HEIGHT, WIDTH, generator=generator)
    labels = torch.randint(0, 13, (HEIGHT, WIDTH), generator=generator)
    normal[:, :2], depth[:, :2], labels[:, 0] = 0, 0, IGNORE
    image = torch.rand(3, HEIGHT, WIDTH, generator=generator)
    return {"image": image, "segmentation": labels, "depth": depth, "normal": normal}


def test_the_default_view_changes_nothing(sample: Sample) -> None:
    shown = show(sample, View(), (HEIGHT, WIDTH))
    assert shown.keys() == sample.keys()
    for key, value in sample.items():
        assert torch.equal(shown[key], value)
        assert shown[key].dtype == value.dtype


def test_mirroring_is_exact_and_negates_normal_x(sample: Sample) -> None:
    shown = show(sample, View(mirrored=True), (HEIGHT, WIDTH))
    assert torch.equal(shown["image"], sample["image"].flip(-1))
    assert torch.equal(shown["segmentation"], sample["segmentation"].flip(-1))
    assert torch.equal(shown["depth"], sample["depth"].flip(-1))
    expected = sample["normal"].flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    assert torch.equal(shown["normal"], expected)


def plane(normal: list[float], distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth [1, H, W] and normals of the plane n·p = -distance under a camera with the axis through the middle."""
    n = torch.tensor(normal) / torch.tensor(normal).norm()
    x = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / 14
    y = -(torch.arange(HEIGHT) + 0.5 - HEIGHT / 2)[:, None] / 14
    depth = -distance / (n[0] * x + n[1] * y - n[2])  # of the rays (x, y, -1)
    return depth[None], n[:, None, None].expand(3, HEIGHT, WIDTH).contiguous()


def test_mirrored_plane_is_the_plane_of_the_mirrored_world(sample: Sample) -> None:
    depth, normal = plane([0.3, 0.2, 0.9], 2.0)
    shown = show(sample | {"depth": depth, "normal": normal}, View(mirrored=True), (HEIGHT, WIDTH))
    mirrored_depth, mirrored_normal = plane([-0.3, 0.2, 0.9], 2.0)
    torch.testing.assert_close(shown["depth"], mirrored_depth)
    torch.testing.assert_close(shown["normal"], mirrored_normal)


def test_zoomed_depth_is_that_of_a_nearer_camera(sample: Sample) -> None:
    """A wall 3 m away, facing the camera, zoomed 1.5 times, is the picture of a wall 2 m away."""
    depth, normal = plane([0.0, 0.0, 1.0], 3.0)
    shown = show(sample | {"depth": depth, "normal": normal}, View(zoom=1.5), (HEIGHT, WIDTH))
    nearer, _ = plane([0.0, 0.0, 1.0], 2.0)
    # The window is 8 × 11 pixels, so the zoom is √(12·16 / 88) = 1.477.
    torch.testing.assert_close(shown["depth"], nearer, rtol=0.02, atol=0)
    torch.testing.assert_close(shown["depth"], depth / (192 / 88) ** 0.5)
    torch.testing.assert_close(shown["normal"], normal)


def test_zoom_by_whole_pixels_is_exact(sample: Sample) -> None:
    """Zooming twice into a corner shows each pixel of that corner as 2 × 2, at half the depth."""
    shown = show(sample, View(zoom=2.0, across=1.0, down=0.0), (HEIGHT, WIDTH))

    def corner(value: torch.Tensor) -> torch.Tensor:
        part = value[..., : HEIGHT // 2, WIDTH // 2 :]
        return part.repeat_interleave(2, -1).repeat_interleave(2, -2)

    assert torch.equal(shown["segmentation"], corner(sample["segmentation"]))
    assert torch.equal(shown["depth"], corner(sample["depth"]) / 2)
    assert torch.equal(shown["normal"], corner(sample["normal"]))
    torch.testing.assert_close(shown["image"].mean(), corner(sample["image"]).mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("index", range(12))
@pytest.mark.parametrize("size", [(12, 16), (7, 9), (30, 20)])
def test_nothing_is_interpolated_but_the_image(sample: Sample, index: int, size: tuple[int, int]) -> None:
    view = draw_view(0, 0, index)
    shown = show(sample, view, size)
    assert shown["image"].shape == (3, *size)
    assert 0 <= shown["image"].min() <= shown["image"].max() <= 1
    assert set(np.unique(shown["segmentation"]).tolist()) <= set(np.unique(sample["segmentation"]).tolist())
    window = round(HEIGHT / view.zoom) * round(WIDTH / view.zoom)
    zoom = (HEIGHT * WIDTH / window) ** 0.5
    allowed = torch.cat([sample["depth"].flatten() / zoom, torch.zeros(1)])
    distance = (shown["depth"].flatten()[:, None] - allowed).abs().min(dim=1).values
    assert distance.max() < 1e-6
    # Invalid stays invalid, for depth and normals alike, and valid normals keep their length.
    invalid = shown["depth"][0] == 0
    assert torch.equal(invalid, shown["normal"].eq(0).all(dim=0))
    length = shown["normal"].norm(dim=0)[~invalid]
    torch.testing.assert_close(length, torch.ones_like(length))


def test_ignore_and_invalid_follow_their_pixels(sample: Sample) -> None:
    """Labels, depth and normals move together: IGNORE pixels carry the depth they had."""
    code = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    marked = sample | {
        "segmentation": code % 13,
        "depth": (code + 1.0)[None] / 100,
        "normal": torch.stack([code / 200.0, code * 0.0, torch.ones(HEIGHT, WIDTH)]),
    }
    for index in range(8):
        view = draw_view(5, 1, index)
        shown = show(marked, view, (24, 32))
        window = round(HEIGHT / view.zoom) * round(WIDTH / view.zoom)
        zoom = (HEIGHT * WIDTH / window) ** 0.5
        pixel = (shown["depth"][0] * zoom * 100 - 1).round().long()
        assert torch.equal(pixel % 13, shown["segmentation"])
        x = shown["normal"][0] * (-1 if view.mirrored else 1)
        torch.testing.assert_close(x * 200, pixel.float(), atol=1e-2, rtol=0)


def test_colors_change_the_image_alone(sample: Sample) -> None:
    view = View(brightness=1.2, contrast=0.8, saturation=1.1, hue=0.02)
    shown = show(sample, view, (HEIGHT, WIDTH))
    assert (shown["image"] - sample["image"]).abs().mean() > 0.01
    for key in ("segmentation", "depth", "normal"):
        assert torch.equal(shown[key], sample[key])


def test_brightness_is_a_factor(sample: Sample) -> None:
    shown = show(sample, View(brightness=0.5), (HEIGHT, WIDTH))
    torch.testing.assert_close(shown["image"], sample["image"] / 2)


def test_views_are_a_pure_function_and_vary() -> None:
    views = {(s, e, i): draw_view(s, e, i) for s in range(3) for e in range(3) for i in range(40)}
    assert all(draw_view(*key) == view for key, view in reversed(views.items()))
    assert len(set(views.values())) == len(views)
    assert 0.4 < np.mean([view.mirrored for view in views.values()]) < 0.6
    zooms = [view.zoom for view in views.values()]
    assert min(zooms) >= 1
    assert max(zooms) <= 1.5
    assert max(zooms) - min(zooms) > 0.45


def test_without_normals(sample: Sample) -> None:
    del sample["normal"]
    assert set(show(sample, draw_view(0, 0, 0), (6, 8))) == {"image", "segmentation", "depth"}


def test_shrinking_averages_the_image(sample: Sample) -> None:
    """Antialiasing: a checkerboard of 0 and 1 shrinks to grey, not to one of its colors."""
    board = ((torch.arange(HEIGHT)[:, None] + torch.arange(WIDTH)) % 2).float().expand(3, HEIGHT, WIDTH)
    shown = show(sample | {"image": board}, View(), (HEIGHT // 2, WIDTH // 2))
    torch.testing.assert_close(shown["image"], torch.full_like(shown["image"], 0.5), atol=0.13, rtol=0)


def with_instances(sample: Sample) -> tuple[Sample, torch.Tensor, torch.Tensor]:
    """The sample with two rectangular instances; their numbers [H, W], 0 outside, and their centers [3, 2]."""
    numbers = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    numbers[2:7, 3:8], numbers[5:11, 9:15] = 1, 2
    center = torch.tensor([[math.nan] * 2, [4.5, 5.5], [8.0, 12.0]], dtype=torch.float64)
    offset = center[numbers].permute(2, 0, 1) - positions(HEIGHT, WIDTH)
    return sample | {"instance": offset.float()}, numbers, center


def test_the_default_view_keeps_offsets(sample: Sample) -> None:
    instanced, _, _ = with_instances(sample)
    torch.testing.assert_close(
        show(instanced, View(), (HEIGHT, WIDTH))["instance"], instanced["instance"], rtol=0, atol=0, equal_nan=True
    )


def test_mirroring_negates_the_way_to_the_right_alone(sample: Sample) -> None:
    instanced, _, _ = with_instances(sample)
    shown = show(instanced, View(mirrored=True), (HEIGHT, WIDTH))["instance"]
    expected = instanced["instance"].flip(-1) * torch.tensor([1.0, -1.0])[:, None, None]
    torch.testing.assert_close(shown, expected, equal_nan=True)


@pytest.mark.parametrize("index", range(12))
@pytest.mark.parametrize("size", [(12, 16), (7, 9), (30, 20)])
def test_offsets_lead_to_where_the_view_puts_the_centers(sample: Sample, index: int, size: tuple[int, int]) -> None:
    instanced, numbers, center = with_instances(sample)
    view = draw_view(3, 0, index)
    shown = show(instanced | {"segmentation": numbers}, view, size)
    rows, columns = round(HEIGHT / view.zoom), round(WIDTH / view.zoom)
    top, left = round((HEIGHT - rows) * view.down), round((WIDTH - columns) * view.across)
    for y in range(size[0]):
        for x in range(size[1]):
            down, right = center[shown["segmentation"][y, x]].tolist()
            there = (down - top) * size[0] / rows, (right - left) * size[1] / columns
            if view.mirrored:
                there = there[0], size[1] - there[1]
            found = shown["instance"][:, y, x].tolist()
            assert found == pytest.approx((there[0] - y - 0.5, there[1] - x - 0.5), abs=1e-4, nan_ok=True)


def test_zoom_multiplies_what_grows_with_nearness(sample: Sample) -> None:
    shown = show(sample, View(zoom=2.0), (HEIGHT, WIDTH), inverse=True)["depth"]
    torch.testing.assert_close(shown, show(sample, View(zoom=2.0), (HEIGHT, WIDTH))["depth"] * 4)
