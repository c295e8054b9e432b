"""Loss, accuracy and macro F1 against values computed in plain Python; samples without a label touch nothing."""

import math

import pytest
import torch
from harness.classification import (
    MISSING,
    ClassificationMetrics,
    class_metrics,
    classification_loss,
    majority,
    majority_floors,
)

CPU = torch.device("cpu")


def _f1(truth: list[int], answer: list[int], classes: int) -> float:
    """Mean of 2·tp / (2·tp + fp + fn) over the classes that occur."""
    scores = []
    for kind in range(classes):
        hits = sum(t == kind == a for t, a in zip(truth, answer, strict=True))
        others = sum((t == kind) != (a == kind) for t, a in zip(truth, answer, strict=True))
        if hits + others:
            scores.append(2 * hits / (2 * hits + others))
    return sum(scores) / len(scores)


def test_metrics_over_batches_against_plain_python() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 4, (60,), generator=generator)  # class 4 never is the truth
    logits = torch.randn(60, 6, generator=generator)
    logits[:, 5] = -99  # and class 5 never the answer either
    meter = ClassificationMetrics("topic", 6, CPU)
    for part in torch.arange(60).split(7):
        meter.update(logits[part], truth[part])
    known = [index for index in range(60) if truth[index] != MISSING]
    assert 0 < len(known) < 60
    labels, answers = truth[known].tolist(), logits[known].argmax(1).tolist()
    assert meter.compute() == pytest.approx({
        "topic/accuracy": sum(a == t for a, t in zip(answers, labels, strict=True)) / len(known),
        "topic/macro_f1": _f1(labels, answers, 6),
    })  # fmt: skip
    assert list(meter.compute()) == [metric.name for metric in class_metrics("topic", primary="macro_f1")]


def test_macro_f1_by_hand() -> None:
    meter = ClassificationMetrics("side", 3, CPU)
    meter.update(torch.eye(3)[[0, 0, 1, 2, 2]], torch.tensor([0, 1, 1, MISSING, 0]))
    # Class 0: one hit, one false alarm, one miss: 1/2. Class 1: one hit, one miss: 2/3. Class 2: one false alarm: 0.
    assert meter.compute() == pytest.approx({"side/accuracy": 2 / 4, "side/macro_f1": (1 / 2 + 2 / 3 + 0) / 3})


def test_the_loss_is_the_mean_over_labelled_samples() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, -5.0]])
    loss = classification_loss(logits, torch.tensor([0, 1, MISSING]))
    assert loss is not None
    assert loss.item() == pytest.approx(((math.log(math.exp(1) + math.exp(2)) - 1) + math.log(2)) / 2)


@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_garbage_without_a_label_changes_neither_loss_nor_gradient_nor_metric(garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(8, 3, generator=generator)
    target = torch.tensor([0, 1, MISSING, 2, MISSING, 1, 0, MISSING])
    planted = clean.clone()
    planted[target == MISSING] = garbage
    losses, gradients, values = [], [], []
    for logits in (clean.clone().requires_grad_(), planted.requires_grad_()):
        loss = classification_loss(logits, target)
        assert loss is not None
        loss.backward()
        meter = ClassificationMetrics("side", 3, CPU)
        meter.update(logits, target)
        losses.append(loss.item())
        gradients.append(logits.grad)
        values.append(meter.compute())
    assert losses[0] == losses[1]
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[1][target == MISSING].eq(0).all()
    assert values[0] == values[1]


def test_without_a_label_there_is_no_loss_and_no_metric() -> None:
    nothing = torch.full((3,), MISSING)
    assert classification_loss(torch.randn(3, 2), nothing) is None
    meter = ClassificationMetrics("side", 2, CPU)
    meter.update(torch.randn(3, 2), nothing)
    assert meter.compute() == {}
    assert majority_floors("side", 2, torch.tensor([0, 1]), nothing) == {}


def test_the_floor_is_the_majority_class_of_training() -> None:
    train = torch.tensor([2, 2, 0, 1, 1, MISSING, MISSING, MISSING])
    assert majority(train) == 1  # of two that are equally frequent, the lower
    val = torch.tensor([1, 1, 0, 2, MISSING])
    # Class 1: two hits, two false alarms: 2/3; classes 0 and 2 are missed.
    assert majority_floors("side", 3, train, val) == pytest.approx({"side/accuracy": 0.5, "side/macro_f1": (2 / 3) / 3})


def test_one_metric_is_primary() -> None:
    assert [(metric.name, metric.primary, metric.best) for metric in class_metrics("fine", primary="accuracy")] == [
        ("fine/accuracy", True, 1),
        ("fine/macro_f1", False, 1),
    ]
