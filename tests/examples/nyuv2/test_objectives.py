"""Losses against values computed by hand, with invalid pixels, and none at all."""

import math

import pytest
import torch
from nyuv2.data import IGNORE
from nyuv2.metrics import TaskMetrics
from nyuv2.objectives import OBJECTIVES, depth_loss, instance_loss, normal_loss, segmentation_loss
from torch import Tensor
from torch.nn import functional as F


def test_cross_entropy_over_labelled_pixels() -> None:
    logits = torch.tensor([[[[0.0, 2.0, 9.0]], [[0.0, 0.0, -9.0]]]], requires_grad=True)  # [1, 2, 1, 3]
    target = torch.tensor([[[0, 1, IGNORE]]])
    loss = segmentation_loss(logits, target)
    assert loss is not None
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 2].abs().max() == 0  # unlabelled
    assert logits.grad[..., :2].abs().min() > 0


def test_absolute_depth_error_over_valid_pixels() -> None:
    prediction = torch.tensor([[[[1.0, 2.5, 7.0, 3.0]]]], requires_grad=True)
    loss = depth_loss(prediction, torch.tensor([[[[1.5, 2.0, 0.0, 5.0]]]]))
    assert loss is not None
    assert loss.item() == pytest.approx((0.5 + 0.5 + 2.0) / 3)
    loss.backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([-1.0, 1, 0, -1]) / 3)


def test_one_minus_cosine_over_valid_pixels() -> None:
    prediction = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]).T.view(1, 3, 1, 3).requires_grad_()
    target = torch.tensor([[0.0, 0, 1], [0, 0.6, 0.8], [0, 0, 0]]).T.view(1, 3, 1, 3)
    loss = normal_loss(prediction, target)
    assert loss is not None
    assert loss.item() == pytest.approx((0.0 + 0.4) / 2)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad[..., 2].abs().max() == 0


@pytest.mark.parametrize(
    ("task", "prediction", "target"),
    [
        ("segmentation", torch.randn(2, 3, 4, 5), torch.full((2, 4, 5), IGNORE)),
        ("depth", torch.rand(2, 1, 4, 5), torch.zeros(2, 1, 4, 5)),
        ("normal", torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)),
        ("instance", torch.randn(2, 2, 4, 5), torch.full((2, 2, 4, 5), math.nan)),
    ],
)
def test_a_batch_without_valid_pixels_makes_the_task_absent(task: str, prediction: Tensor, target: Tensor) -> None:
    assert OBJECTIVES[task](prediction, target) is None


def test_absolute_offset_error_over_both_coordinates_of_instances() -> None:
    prediction = torch.tensor([[1.0, 9.0, -2.0], [0.0, 9.0, 3.0]]).view(1, 2, 1, 3).requires_grad_()
    target = torch.tensor([[0.0, math.nan, -2.0], [-3.0, math.nan, 1.0]]).view(1, 2, 1, 3)
    loss = instance_loss(prediction, target)
    assert loss is not None
    assert loss.item() == pytest.approx((1 + 3 + 0 + 2) / 4)
    loss.backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([1.0, 0, 0, 1, 0, 1]) / 4)


TARGETS = {  # [2, ·, 3, 4] with invalid pixels in the first two rows, of the one image, and everywhere in the other
    "segmentation": torch.arange(24).view(2, 3, 4) % 5,
    "depth": 0.5 + torch.arange(24.0).view(2, 1, 3, 4),
    "normal": F.normalize(torch.arange(1.0, 73).view(2, 3, 3, 4), dim=1),
    "instance": torch.arange(-24.0, 24).view(2, 2, 3, 4),
}
INVALID = {"segmentation": IGNORE, "depth": 0.0, "normal": 0.0, "instance": math.nan}
CHANNELS = {"segmentation": 5, "depth": 1, "normal": 3, "instance": 2}


@pytest.mark.parametrize("task", OBJECTIVES)
@pytest.mark.parametrize("garbage", [-1e6, 0.0, 1e6])
def test_nothing_under_invalid_pixels_reaches_loss_gradient_or_metrics(task: str, garbage: float) -> None:
    target = TARGETS[task].clone()
    target[0, ..., :2, :], target[1] = INVALID[task], INVALID[task]
    prediction = torch.rand(2, CHANNELS[task], 3, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    planted = prediction.clone()
    planted[0, :, :2], planted[1] = garbage, garbage
    found = []
    for answer in (prediction, planted):
        answer.requires_grad_()
        loss = OBJECTIVES[task](answer, target)
        assert loss is not None
        loss.backward()
        assert answer.grad is not None
        assert answer.grad[0, :, :2].eq(0).all()
        assert answer.grad[1].eq(0).all()
        meter = TaskMetrics(task, CHANNELS[task], torch.device("cpu"))
        meter.update(answer.detach(), target)
        found.append((loss.item(), answer.grad[0, :, 2].tolist(), meter.compute()))
    assert found[0] == found[1]
    valid_alone = OBJECTIVES[task](prediction[:1, :, 2:], target[:1, ..., 2:, :])
    assert valid_alone is not None
    assert valid_alone.item() == pytest.approx(found[0][0])


@pytest.mark.parametrize("task", OBJECTIVES)
def test_losses_of_half_precision_predictions_are_float32(task: str) -> None:
    loss = OBJECTIVES[task](torch.rand(2, CHANNELS[task], 3, 4).bfloat16(), TARGETS[task])
    assert loss is not None
    assert loss.dtype == torch.float32
