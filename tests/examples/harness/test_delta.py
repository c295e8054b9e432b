"""Δm against the published tables, and against its definition written out."""

import math
import re

import pytest
from harness.delta import delta_m
from harness.errors import RunError
from harness.metric import Metric
from hypothesis import given
from hypothesis import strategies as st

NAMES = (
    ("segmentation/mean_iou", 1), ("segmentation/pixel_accuracy", 1), ("depth/absolute_error_m", 0), ("depth/relative_error", 0),
    ("normal/mean_angle_deg", 0), ("normal/median_angle_deg", 0),
    ("normal/within_11.25_deg", 1), ("normal/within_22.5_deg", 1), ("normal/within_30_deg", 1),
)  # fmt: skip
METRICS = tuple(Metric(name, best=best) for name, best in NAMES)
SINGLE = (0.3830, 0.6376, 0.6754, 0.2780, 25.01, 19.21, 0.3014, 0.5720, 0.6915)
# NYUv2, three tasks, as in the table of Nash-MTL (Navon et al., ICML 2022), and the Δm printed beside each row.
PUBLISHED = {
    "EW": ((0.3929, 0.6533, 0.5493, 0.2263, 28.15, 23.96, 0.2209, 0.4750, 0.6108), 5.59),
    "UW": ((0.3687, 0.6317, 0.5446, 0.2260, 27.04, 22.61, 0.2354, 0.4905, 0.6365), 4.05),
    "PCGrad": ((0.3806, 0.6464, 0.5550, 0.2325, 27.41, 22.80, 0.2386, 0.4983, 0.6314), 3.97),
    "CAGrad": ((0.3979, 0.6549, 0.5486, 0.2250, 26.31, 21.58, 0.2561, 0.5236, 0.6558), 0.20),
    "Nash-MTL": ((0.4013, 0.6593, 0.5261, 0.2171, 25.26, 20.08, 0.2840, 0.5547, 0.6815), -4.04),
}


def _named(values: tuple[float, ...]) -> dict[str, float]:
    return {name: value for (name, _), value in zip(NAMES, values, strict=True)}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_rows(method: str) -> None:
    values, printed = PUBLISHED[method]
    assert delta_m(_named(values), _named(SINGLE), METRICS) == pytest.approx(printed, abs=0.02)  # rows and Δm are rounded


def test_the_mean_is_over_metrics_and_not_within_tasks_first() -> None:
    metrics = (Metric("a/one"), Metric("a/two"), Metric("b/one", best=1))
    baseline = {"a/one": 1.0, "a/two": 2.0, "b/one": 0.5}
    assert delta_m({"a/one": 1.1, "a/two": 2.4, "b/one": 0.6}, baseline, metrics) == pytest.approx((10 + 20 - 20) / 3)
    assert delta_m({"a/one": 1.1, "b/one": 0.4}, {"a/one": 1.0, "b/one": 0.5}, metrics[::2]) == pytest.approx((10 + 20) / 2)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans()), min_size=1, max_size=9))
def test_by_definition(rows: list[tuple[float, float, bool]]) -> None:
    metrics = [Metric(f"t/{i}", best=float(higher)) for i, (_, _, higher) in enumerate(rows)]
    values, baseline = ({f"t/{i}": row[k] for i, row in enumerate(rows)} for k in (0, 1))
    expected = sum((-1) ** higher * (m - b) / b for m, b, higher in rows) * 100 / len(rows)
    assert delta_m(values, baseline, metrics) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert delta_m(baseline, baseline, metrics) == 0


def test_what_has_no_answer() -> None:
    metric = Metric("a/b")
    assert math.isnan(delta_m({"a/b": math.nan}, {"a/b": 1.0}, [metric]))
    for values, baseline, metrics, message in (
        ({}, {}, [], "at least one metric, found none"),
        ({}, {"a/b": 1.0}, [metric], "expected a/b in the values"),
        ({"a/b": 1.0}, {}, [metric], "expected a/b in the baseline"),
        ({"a/b": 1.0}, {"a/b": 0.0}, [metric], "a baseline other than 0 for a/b"),
    ):
        with pytest.raises(RunError, match=re.escape(message)):
            delta_m(values, baseline, metrics)
