"""Metrics against values computed by hand, with invalid pixels, over several batches; floors; the score."""

import math

import numpy as np
import pytest
import torch
from nyuv2.data import IGNORE
from nyuv2.floors import ConstantAnswer
from nyuv2.metrics import METRICS, AngularError, TaskMetrics
from torch import Tensor
from torch.nn import functional as F

CPU = torch.device("cpu")


def _logits(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).permute(0, 3, 1, 2).float()


def test_segmentation_over_two_batches() -> None:
    meter = TaskMetrics("segmentation", 4, CPU)
    meter.update(_logits(torch.tensor([[[0, 0, 1, 1]]]), 4), torch.tensor([[[0, 1, 1, IGNORE]]]))
    meter.update(_logits(torch.tensor([[[1, 2, 0, 3]]]), 4), torch.tensor([[[1, 1, 0, IGNORE]]]))
    # Of 6 labelled pixels 4 are right. IoU: class 0 2/3, class 1 2/4, class 2 0/1; class 3 occurs nowhere that counts.
    assert meter.compute() == pytest.approx({
        "segmentation/pixel_accuracy": 4 / 6,
        "segmentation/mean_iou": (2 / 3 + 1 / 2 + 0) / 3,
    })  # fmt: skip


def test_depth_over_two_batches() -> None:
    meter = TaskMetrics("depth", 13, CPU)
    meter.update(torch.tensor([2.0, 4.0, 9.0]).view(1, 1, 1, 3), torch.tensor([1.0, 4.0, 0.0]).view(1, 1, 1, 3))
    meter.update(torch.tensor([5.0]).view(1, 1, 1, 1), torch.tensor([2.0]).view(1, 1, 1, 1))
    found = meter.compute()
    assert found["depth/absolute_error_m"] == pytest.approx((1 + 0 + 3) / 3)
    assert found["depth/relative_error"] == pytest.approx((1 / 1 + 0 + 3 / 2) / 3)
    assert found["depth/rmse_m"] == pytest.approx(math.sqrt((1 + 0 + 9) / 3))
    # First image: log ratios log 2 and 0, standard deviation log(2) / 2; second: one pixel, 0.
    assert found["depth/scale_invariant_log_error"] == pytest.approx(math.log(2) / 4)


def test_the_scale_invariant_error_ignores_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 1, 5, 5, generator=generator) + 0.5 for _ in range(2))
    found = []
    for factor in (1.0, 3.0):
        meter = TaskMetrics("depth", 13, CPU)
        meter.update(factor * prediction, target)
        found.append(meter.compute()["depth/scale_invariant_log_error"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 0.1


def test_angles_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    target = F.normalize(torch.randn(3, 3, 8, 8, generator=generator), dim=1)
    prediction = F.normalize(target + 0.3 * torch.randn(3, 3, 8, 8, generator=generator), dim=1)
    target[:, :, :2] = 0  # invalid
    meter = TaskMetrics("normal", 13, CPU)
    for part in range(3):
        meter.update(prediction[part : part + 1], target[part : part + 1])
    found = meter.compute()
    cosine = (prediction.double() * target.double()).sum(1)[target.abs().sum(1) > 0].clamp(-1, 1)
    angles = np.degrees(np.arccos(cosine.numpy()))
    assert angles.size == 3 * 6 * 8
    assert found["normal/mean_angle_deg"] == pytest.approx(angles.mean())
    assert found["normal/median_angle_deg"] == pytest.approx(np.sort(angles)[angles.size // 2 - 1], abs=0.0051)
    for threshold in (11.25, 22.5, 30):
        assert found[f"normal/within_{threshold:g}_deg"] == pytest.approx((angles < threshold).mean())


def test_opposite_and_equal_normals_are_180_and_0_degrees() -> None:
    meter = AngularError()
    up = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    meter.update(torch.cat([up, up], 3), torch.cat([up, -up], 3))
    found = meter.compute()
    assert found["normal/mean_angle_deg"].item() == pytest.approx(90)
    assert found["normal/median_angle_deg"].item() == pytest.approx(0, abs=0.0051)
    assert found["normal/within_30_deg"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("task", ["segmentation", "depth", "normal"])
def test_without_valid_pixels_there_are_no_metrics(task: str) -> None:
    target = torch.full((1, 2, 2), IGNORE) if task == "segmentation" else torch.zeros(1, 1 if task == "depth" else 3, 2, 2)
    meter = TaskMetrics(task, 13, CPU)
    meter.update(torch.rand(1, {"segmentation": 13, "depth": 1, "normal": 3}[task], 2, 2), target)
    assert meter.compute() == {}


def test_metrics_come_under_their_announced_names() -> None:
    generator = torch.Generator().manual_seed(0)
    for task, channels in (("segmentation", 13), ("depth", 1), ("normal", 3)):
        meter = TaskMetrics(task, 13, CPU)
        target = torch.zeros(1, 2, 2).long() if task == "segmentation" else torch.ones(1, channels, 2, 2) / math.sqrt(channels)
        meter.update(torch.rand(1, channels, 2, 2, generator=generator), target)
        assert tuple(meter.compute()) == tuple(metric.name for metric in METRICS[task])


def test_the_constant_answer_is_majority_median_and_mean() -> None:
    train = [
        {
            "segmentation": torch.tensor([[[2, 2, 1, IGNORE]]]),
            "depth": torch.tensor([1.0, 2.0, 9.0, 0.0]).view(1, 1, 1, 4),
            "normal": torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 4),
        }
    ]
    answer = ConstantAnswer(train, ("segmentation", "depth", "normal"), 3)
    assert (answer.majority, answer.median_depth) == (2, 2.0)
    torch.testing.assert_close(answer.mean_normal, torch.tensor([0.0, 1, 1]) / math.sqrt(2))
    val = [
        {
            "segmentation": torch.tensor([[[2, 0, IGNORE, 1]]]),
            "depth": torch.tensor([3.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4),
            "normal": torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 4),
        }
    ]
    floors = answer.measure(val)
    assert floors["segmentation/pixel_accuracy"] == pytest.approx(1 / 3)
    assert floors["depth/absolute_error_m"] == pytest.approx(0.5)
    assert floors["normal/mean_angle_deg"] == pytest.approx(45, abs=1e-3)
