"""Δm: what learning tasks together cost, compared with learning each by itself."""

from collections.abc import Mapping, Sequence

from harness.errors import RunError
from harness.metric import Metric


def delta_m(values: Mapping[str, float], baseline: Mapping[str, float], metrics: Sequence[Metric]) -> float:
    """Δm = 100 / |M| · Σ_m (−1)^[higher is better] (values_m − baseline_m) / |baseline_m|, in percent; below 0 is better.

    Maninis, Radosavovic and Kokkinos (CVPR 2019), who have one metric a task. The mean is over all metrics at once, as in the
    published tables of CAGrad, Nash-MTL and FAMO, so a task with five metrics counts five times; it is not first taken within
    tasks (for that, pass one metric a task). NaN in a value makes Δm NaN.

    Args:
        values: of the model for several tasks, by metric.
        baseline: of the models for one task each.
        metrics: what to average over; both have a value of each.

    Raises:
        RunError: no metrics, a metric without a value, or a baseline of 0, from which there is no relative distance.
    """
    if not metrics:
        raise RunError("Δm: expected at least one metric, found none; name the metrics to average over.")
    for of_what, numbers in (("values", values), ("baseline", baseline)):
        if missing := [metric.name for metric in metrics if metric.name not in numbers]:
            raise RunError(f"Δm: expected {', '.join(missing)} in the {of_what}, found none; leave it out of the metrics.")
    if perfect := [metric.name for metric in metrics if baseline[metric.name] == 0]:
        raise RunError(f"Δm: expected a baseline other than 0 for {', '.join(perfect)}, found 0; leave it out of the metrics.")
    total = 0.0
    for metric in metrics:
        change = (values[metric.name] - baseline[metric.name]) / abs(baseline[metric.name])
        total += -change if metric.higher_is_better else change
    return 100 * total / len(metrics)
