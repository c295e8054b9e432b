"""Every metric against its definition in float64: absent classes, images without truth, batches of unequal size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nyuv2.data.cityscapes import _DISPARITY
from nyuv2.data.sample import IGNORE, INDOORS, DepthScale
from nyuv2.metrics import METRICS, AngularError, TaskMetrics, metrics_of
from oracles import dense_metrics
from torch import Tensor
from torch.nn import functional as F

CLASSES = 6
INVALID = {"segmentation": IGNORE, "depth": 0.0, "normal": 0.0, "instance": math.nan}


def _draw(task: str, images: int, pixels: int, seed: int, invalid: float, present: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets of `images` × 1 × `pixels`, a share `invalid` without truth, of classes below `present`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 1, pixels)

    def noise(channels: int) -> Tensor:
        return torch.randn(images, channels, 1, pixels, generator=generator)

    if task == "segmentation":
        target = torch.randint(present, shape, generator=generator)
        prediction = noise(CLASSES) + 2 * F.one_hot(target, CLASSES).permute(0, 3, 1, 2)
        prediction[:, present:] = -9
    elif task == "depth":
        target = torch.rand(images, 1, 1, pixels, generator=generator) * 9.5 + 0.2
        prediction = target * (0.5 * noise(1)).exp()
    elif task == "normal":
        target = F.normalize(noise(3), dim=1)
        prediction = F.normalize(target + 0.4 * noise(3), dim=1)
    else:
        target = 20 * noise(2)
        prediction = target + 5 * noise(2)
    hidden = torch.rand(shape, generator=generator) < invalid
    hidden[0] |= invalid > 0.5  # an image without any truth
    target = target.masked_fill(hidden if task == "segmentation" else hidden[:, None], INVALID[task])
    return prediction, target


def _oracle(task: str, prediction: Tensor, target: Tensor) -> dict[str, float]:
    if task == "segmentation":
        pairs = list(zip(prediction.argmax(1).numpy(), target.numpy(), strict=True))
        return dense_metrics.segmentation(pairs, CLASSES, IGNORE)
    pairs = list(zip(prediction.numpy(), target.numpy(), strict=True))
    return {"depth": dense_metrics.depth, "normal": dense_metrics.normal, "instance": dense_metrics.instance}[task](pairs)


@pytest.mark.parametrize("task", METRICS)
@given(
    images=st.integers(1, 5),
    pixels=st.integers(1, 24),
    seed=st.integers(0, 2**31),
    invalid=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    present=st.integers(1, CLASSES),
    first=st.integers(1, 5),
)
def test_metrics_are_their_definitions(
    task: str, images: int, pixels: int, seed: int, invalid: float, present: int, first: int
) -> None:
    prediction, target = _draw(task, images, pixels, seed, invalid, present)
    meter = TaskMetrics(task, CLASSES, torch.device("cpu"))
    for part in (slice(0, first), slice(first, None)):  # batches of unequal size, the second perhaps of none
        if len(target[part]):
            meter.update(prediction[part], target[part])
    found, expected = meter.compute(), _oracle(task, prediction, target)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 0.0051 if name == "normal/median_angle_deg" else 1e-4  # half of its histogram's bin, and float32
        assert found[name] == pytest.approx(value, rel=2e-5, abs=tolerance if "deg" in name else 1e-6), name


def test_a_class_in_neither_prediction_nor_truth_does_not_count() -> None:
    """And one that is predicted where there is no truth does not either; one that is predicted wrongly counts as 0."""
    target = torch.tensor([[[0, 0, 1, IGNORE]]])
    labels = torch.tensor([[[0, 0, 2, 3]]])
    meter = TaskMetrics("segmentation", CLASSES, torch.device("cpu"))
    meter.update(F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float(), target)
    assert meter.compute()["segmentation/mean_iou"] == pytest.approx((1 + 0 + 0) / 3)


def test_a_prediction_that_is_no_number_is_no_crash_and_no_success() -> None:
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    prediction = target.clone()
    prediction[..., :2] = math.nan
    meter = AngularError()
    meter.update(prediction, target)
    found = meter.compute()
    assert found["normal/mean_angle_deg"].isnan()
    assert found["normal/median_angle_deg"].item() == pytest.approx(180, abs=0.01)
    assert found["normal/within_30_deg"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(("scale", "ending"), [(INDOORS, "_m"), (_DISPARITY, "_px"), (DepthScale("", 1.0, 0.1, True), "")])
def test_errors_of_depth_are_named_after_its_unit(scale: DepthScale, ending: str) -> None:
    meter = TaskMetrics("depth", CLASSES, torch.device("cpu"), scale)
    meter.update(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    assert tuple(meter.compute()) == tuple(metric.name for metric in metrics_of("depth", scale))
    assert meter.compute()[f"depth/absolute_error{ending}"] == pytest.approx(0.5)
