"""Which way is better, and the score against floors."""

import math

import pytest
from harness.metric import Metric, score

METRICS = (
    Metric("segmentation/pixel_accuracy", best=1, primary=True),
    Metric("segmentation/mean_iou", best=1),
    Metric("depth/absolute_error_m", unit=" m", primary=True),
    Metric("normal/mean_angle_deg", unit="°", primary=True),
)
FLOORS = {
    "segmentation/pixel_accuracy": 0.2,
    "segmentation/mean_iou": 0.1,
    "depth/absolute_error_m": 1.0,
    "normal/mean_angle_deg": 40.0,
}


def test_the_score_is_the_share_of_the_floors_error_removed() -> None:
    values = {"segmentation/pixel_accuracy": 0.6, "depth/absolute_error_m": 0.8, "normal/mean_angle_deg": 40.0}
    assert score(values, FLOORS, METRICS) == pytest.approx((0.5 + 0.2 + 0.0) / 3)
    assert score({"depth/absolute_error_m": 2.0}, FLOORS, METRICS) == pytest.approx(-1.0)


def test_only_primary_metrics_with_a_value_and_an_imperfect_floor_count() -> None:
    assert math.isnan(score({}, FLOORS, METRICS))
    assert math.isnan(score({"segmentation/mean_iou": 0.9}, FLOORS, METRICS))
    perfect = FLOORS | {"depth/absolute_error_m": 0.0}
    assert score({"depth/absolute_error_m": 0.3, "normal/mean_angle_deg": 20.0}, perfect, METRICS) == pytest.approx(0.5)


def test_better_is_higher_for_accuracies_and_lower_for_errors() -> None:
    accuracy, _, error, _ = METRICS
    assert accuracy.beats(0.6, 0.5)
    assert not accuracy.beats(0.5, 0.5)
    assert error.beats(0.4, 0.5)
    assert not error.beats(0.5, 0.5)
    assert (error.task, error.words) == ("depth", "absolute error")
    assert METRICS[3].words == "mean angle"
    assert (accuracy.task, accuracy.words) == ("segmentation", "pixel accuracy")
