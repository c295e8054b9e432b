"""Losses against values computed by hand, with invalid pixels, and none at all."""

import math
from collections.abc import Callable

import pytest
import torch
from harness.errors import RunError
from nyuv2.data import IGNORE
from nyuv2.metrics import TaskMetrics
from nyuv2.objectives import (
    OBJECTIVES,
    Objective,
    berhu_depth,
    choose_objectives,
    cosine_normal,
    cross_entropy,
    l1_depth,
    l1_offset,
    silog_depth,
)
from torch import Tensor
from torch.nn import functional as F


def test_cross_entropy_over_labelled_pixels() -> None:
    logits = torch.tensor([[[[0.0, 2.0, 9.0]], [[0.0, 0.0, -9.0]]]], requires_grad=True)  # [1, 2, 1, 3]
    target = torch.tensor([[[0, 1, IGNORE]]])
    loss = cross_entropy(logits, target)
    assert loss is not None
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 2].abs().max() == 0  # unlabelled
    assert logits.grad[..., :2].abs().min() > 0


def test_absolute_depth_error_over_valid_pixels() -> None:
    prediction = torch.tensor([[[[1.0, 2.5, 7.0, 3.0]]]], requires_grad=True)
    loss = l1_depth(prediction, torch.tensor([[[[1.5, 2.0, 0.0, 5.0]]]]))
    assert loss is not None
    assert loss.item() == pytest.approx((0.5 + 0.5 + 2.0) / 3)
    loss.backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([-1.0, 1, 0, -1]) / 3)


def test_one_minus_cosine_over_valid_pixels() -> None:
    prediction = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]).T.view(1, 3, 1, 3).requires_grad_()
    target = torch.tensor([[0.0, 0, 1], [0, 0.6, 0.8], [0, 0, 0]]).T.view(1, 3, 1, 3)
    loss = cosine_normal(prediction, target)
    assert loss is not None
    assert loss.item() == pytest.approx((0.0 + 0.4) / 2)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad[..., 2].abs().max() == 0


EVERY = [pytest.param(task, loss, id=f"{task}-{name}") for task, losses in OBJECTIVES.items() for name, loss in losses.items()]


@pytest.mark.parametrize(("task", "loss"), EVERY)
def test_a_diverged_prediction_shows_in_the_loss(task: str, loss: Objective) -> None:
    channels = {"segmentation": 3, "depth": 1, "normal": 3, "instance": 2}[task]
    target = torch.zeros(1, 2, 2, dtype=torch.int64) if task == "segmentation" else torch.full((1, channels, 2, 2), 0.5)
    value = loss(torch.full((1, channels, 2, 2), math.nan), target)
    assert value is not None
    assert value.isnan()


TARGETS = {  # [2, ·, 3, 4] with invalid pixels in the first two rows, of the one image, and everywhere in the other
    "segmentation": torch.arange(24).view(2, 3, 4) % 5,
    "depth": 0.5 + torch.arange(24.0).view(2, 1, 3, 4),
    "normal": F.normalize(torch.arange(1.0, 73).view(2, 3, 3, 4), dim=1),
    "instance": torch.arange(-24.0, 24).view(2, 2, 3, 4),
}
INVALID = {"segmentation": IGNORE, "depth": 0.0, "normal": 0.0, "instance": math.nan}
CHANNELS = {"segmentation": 5, "depth": 1, "normal": 3, "instance": 2}


def test_absolute_offset_error_over_both_coordinates_of_instances() -> None:
    prediction = torch.tensor([[1.0, 9.0, -2.0], [0.0, 9.0, 3.0]]).view(1, 2, 1, 3).requires_grad_()
    target = torch.tensor([[0.0, math.nan, -2.0], [-3.0, math.nan, 1.0]]).view(1, 2, 1, 3)
    loss = l1_offset(prediction, target)
    assert loss is not None
    assert loss.item() == pytest.approx((1 + 3 + 0 + 2) / 4)
    loss.backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([1.0, 0, 0, 1, 0, 1]) / 4)


@pytest.mark.parametrize(("task", "objective"), EVERY)
@pytest.mark.parametrize("garbage", [-1e6, 0.0, 1e6])
def test_nothing_under_invalid_pixels_reaches_loss_gradient_or_metrics(task: str, objective: Objective, garbage: float) -> None:
    target = TARGETS[task].clone()
    target[0, ..., :2, :], target[1] = INVALID[task], INVALID[task]
    prediction = torch.rand(2, CHANNELS[task], 3, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    planted = prediction.clone()
    planted[0, :, :2], planted[1] = garbage, garbage
    found = []
    for answer in (prediction, planted):
        answer.requires_grad_()
        loss = objective(answer, target)
        assert loss is not None
        loss.backward()
        assert answer.grad is not None
        assert answer.grad[0, :, :2].eq(0).all()
        assert answer.grad[1].eq(0).all()
        meter = TaskMetrics(task, CHANNELS[task], torch.device("cpu"))
        meter.update(answer.detach(), target)
        found.append((loss.item(), answer.grad[0, :, 2].tolist(), meter.compute()))
    assert found[0] == found[1]
    valid_alone = objective(prediction[:1, :, 2:], target[:1, ..., 2:, :])
    assert valid_alone is not None
    assert valid_alone.item() == pytest.approx(found[0][0])


def _example(task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target, and which pixels [B, 1, H, W] are invalid."""
    generator = torch.Generator().manual_seed(1)
    invalid = torch.rand(2, 1, 4, 5, generator=generator) < 0.3
    raw = torch.randn(2, 3, 4, 5, generator=generator)
    if task == "segmentation":
        target = torch.randint(3, (2, 4, 5), generator=generator)
        return raw, target.masked_fill(invalid[:, 0], IGNORE), invalid
    if task == "depth":
        target = torch.rand(2, 1, 4, 5, generator=generator) * 5 + 0.5
        return raw[:, :1].exp(), target.masked_fill(invalid, 0), invalid
    if task == "instance":
        return raw[:, :2], torch.randn(2, 2, 4, 5, generator=generator).masked_fill(invalid, math.nan), invalid
    target = torch.randn(2, 3, 4, 5, generator=generator)
    return torch.nn.functional.normalize(raw, dim=1), torch.nn.functional.normalize(target, dim=1).masked_fill(invalid, 0), invalid


def _gradient(loss: Objective, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = prediction.clone().requires_grad_()
    value = loss(leaf, target)
    assert value is not None
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("garbage", [1e6, -1e6, math.inf, math.nan])
@pytest.mark.parametrize(("task", "loss"), EVERY)
def test_garbage_in_invalid_pixels_changes_neither_loss_nor_gradient(task: str, loss: Objective, garbage: float) -> None:
    prediction, target, invalid = _example(task)
    value, gradient = _gradient(loss, prediction, target)
    planted_value, planted_gradient = _gradient(loss, prediction.masked_fill(invalid, garbage), target)
    assert torch.equal(value, planted_value)
    assert torch.equal(gradient, planted_gradient)
    assert gradient.masked_select(invalid).abs().max() == 0
    assert gradient.masked_select(~invalid).abs().max() > 0


@pytest.mark.parametrize("name", OBJECTIVES["depth"])
def test_depth_gradients_agree_with_formulas_by_hand(name: str) -> None:
    prediction, target, invalid = _example("depth")
    value, gradient = _gradient(OBJECTIVES["depth"][name], prediction, target)
    y, t = prediction[~invalid].double(), target[~invalid].double()
    e, n = y - t, len(y)
    if name == "l1":
        expected, slope = e.abs().mean(), e.sign() / n
    elif name == "berhu":
        c = e.abs().max() / 5
        small = e.abs() <= c
        assert 0 < small.sum() < n  # both branches are taken
        expected = (e[small].abs().sum() + ((e[~small] ** 2 + c**2) / (2 * c)).sum()) / n
        slope = torch.where(small, e.sign(), e / c) / n
    else:
        d = y.log() - t.log()
        expected = ((d**2).mean() - 0.85 * d.mean() ** 2).sqrt()
        slope = (d - 0.85 * d.mean()) / (n * expected * y)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient[~invalid].double(), slope, rtol=1e-4, atol=1e-7)


def test_berhu_is_continuous_where_its_branches_meet() -> None:
    """Errors of 5 (so c = 1) and of just under and over 1: values and slopes on both sides agree."""
    target = torch.ones(1, 1, 1, 2)
    values, slopes = [], []
    for error in (1 - 1e-6, 1 + 1e-6):
        value, gradient = _gradient(OBJECTIVES["depth"]["berhu"], target + torch.tensor([error, 5.0]), target)
        values.append(2 * value.item() - 13)  # B(5) = (25 + 1) / 2
        slopes.append(2 * gradient[..., 0].item())
    assert values == pytest.approx([1, 1], abs=1e-5)
    assert slopes == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("loss", [berhu_depth, silog_depth])
def test_a_perfect_depth_has_loss_and_gradient_zero(loss: Callable[[Tensor, Tensor], Tensor | None]) -> None:
    target = torch.tensor([[[[1.0, 2.0, 0.0]]]])
    value, gradient = _gradient(Objective(loss, ""), target.clamp(min=0.5), target)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_silog_with_lambda_1_ignores_scale_and_survives_a_depth_of_0() -> None:
    prediction, target, _ = _example("depth")
    losses = [silog_depth(prediction * scale, target, lam=1.0) for scale in (1, 3)]
    torch.testing.assert_close(losses[0], losses[1])
    value, gradient = _gradient(OBJECTIVES["depth"]["silog"], torch.zeros_like(prediction), target)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_l1_of_normals_is_the_mean_over_components() -> None:
    prediction, target, invalid = _example("normal")
    value, gradient = _gradient(OBJECTIVES["normal"]["l1"], prediction, target)
    e = (prediction - target).double().masked_select(~invalid)
    torch.testing.assert_close(value.double(), e.abs().mean(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.masked_select(~invalid).double(), e.sign() / len(e), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("task", "loss"), EVERY)
def test_a_batch_without_valid_pixels_makes_the_task_absent(task: str, loss: Objective) -> None:
    prediction, target, _ = _example(task)
    assert loss(prediction, torch.full_like(target, INVALID[task])) is None


@pytest.mark.parametrize(("task", "loss"), EVERY)
def test_losses_of_half_precision_predictions_are_float32(task: str, loss: Objective) -> None:
    prediction, target, _ = _example(task)
    value = loss(prediction.bfloat16(), target)
    assert value is not None
    assert value.dtype == torch.float32


def test_weights_multiply_the_losses_that_are_named() -> None:
    plain = choose_objectives(("depth", "normal"), {"depth": "berhu"})
    weighted = choose_objectives(("depth", "normal"), {"depth": "berhu", "normal": "l1"}, [("depth", 2.5)])
    prediction, target, _ = _example("depth")
    value, once = weighted["depth"](prediction, target), plain["depth"](prediction, target)
    assert value is not None
    assert once is not None
    assert value.item() == pytest.approx(2.5 * once.item())
    assert {task: objective.label for task, objective in weighted.items()} == {"depth": "2.5 × berHu, m", "normal": "L1"}
    assert plain["normal"].label == "1 − cosine"


@pytest.mark.parametrize("weights", [[("edges", 1.0)], [("depth", 1.0), ("depth", 2.0)]])
def test_weights_of_unknown_tasks_or_given_twice_are_refused(weights: list[tuple[str, float]]) -> None:
    with pytest.raises(RunError, match=rf"--loss-weights {weights[0][0]}: expected each of depth, normal at most once"):
        choose_objectives(("depth", "normal"), {}, weights)
