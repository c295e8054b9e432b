"""Losses against values computed by hand, with invalid pixels, and none at all."""

import math

import pytest
import torch
from nyuv2.data import IGNORE
from nyuv2.objectives import OBJECTIVES, depth_loss, normal_loss, segmentation_loss
from torch import Tensor


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
    ],
)
def test_a_batch_without_valid_pixels_makes_the_task_absent(task: str, prediction: Tensor, target: Tensor) -> None:
    assert OBJECTIVES[task](prediction, target) is None


@pytest.mark.parametrize("task", OBJECTIVES)
def test_losses_of_half_precision_predictions_are_float32(task: str) -> None:
    target = {"segmentation": torch.ones(1, 2, 2).long(), "depth": torch.ones(1, 1, 2, 2), "normal": torch.eye(3)[:, :1, None]}
    loss = OBJECTIVES[task](torch.rand(1, 1 if task == "depth" else 3, 2, 2).bfloat16(), target[task].expand(1, -1, 2, 2)
                            if task == "normal" else target[task])  # fmt: skip
    assert loss is not None
    assert loss.dtype == torch.float32
