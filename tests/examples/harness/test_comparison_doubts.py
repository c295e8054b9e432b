"""Where a comparison's numbers would mislead: runs that diverged, baselines that are not complete or 0, tasks that differ."""

import json
import math
from pathlib import Path

import pytest
from harness.arms import Run, plan
from harness.comparison import Summary, collect, explanation, markdown, summarize, write_csv
from harness.comparison_plots import plot_metrics, plot_scores
from harness.errors import RunError
from harness.metric import Metric
from harness.run_table import Row, write_table
from matplotlib.figure import Figure
from matplotlib.image import imread

METRICS = {
    "kind": (Metric("kind/accuracy", best=1, primary=True), Metric("kind/mean_iou", best=1)),
    "depth": (Metric("depth/absolute_error_m", unit=" m", primary=True),),
}


def _finish(run: Run, out: Path, values: dict[str, float], tasks: tuple[str, ...] = ("kind", "depth")) -> None:
    folder = run.folder(out)
    folder.mkdir(parents=True)
    tasks = (run.options[-1],) if run.alone else tasks
    (folder / "config.json").write_text(json.dumps({"arguments": {"epochs": 1, "tasks": list(tasks)}}))
    metrics = [metric for task in tasks for metric in METRICS[task]]
    write_table(folder / "table.csv", [Row(metric, 0.5, values[metric.name]) for metric in metrics])
    (folder / "log.csv").write_text("step,epoch,conflicts,score\n1,0,1,0.25\n2,0,0,0.5\n")


def _values(accuracy: float = 0.5, iou: float = 0.25, error: float = 1.0) -> dict[str, float]:
    return {"kind/accuracy": accuracy, "kind/mean_iou": iou, "depth/absolute_error_m": error}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_run_that_diverged_is_shown_as_that(tmp_path: Path, wrong: float) -> None:
    runs = plan(["equal", "pcgrad"], [0, 1], [])
    for run in runs:
        _finish(run, tmp_path, _values(error=wrong if run == runs[0] else 1.0))
    metrics, summaries = summarize(collect(runs, tmp_path))
    diverged = summaries["equal"]["depth/absolute_error_m"]
    assert not math.isfinite(diverged.mean)
    assert math.isnan(diverged.deviation)
    assert f"| {wrong:.3f} |" in markdown(metrics, summaries)
    write_csv(tmp_path / "rows.csv", metrics, summaries)
    plot_metrics(metrics, summaries, tmp_path / "metrics.png", title="t")
    assert imread(tmp_path / "metrics.png").std() > 0.01


def test_means_and_deviations_by_hand() -> None:
    one = Summary.of([1.0, 2.0, 6.0])
    assert (one.mean, one.deviation) == pytest.approx((3.0, math.sqrt((4 + 1 + 9) / 2)))
    assert math.isnan(Summary.of([math.inf, -math.inf]).mean)


def test_delta_m_waits_for_every_task_alone(tmp_path: Path) -> None:
    runs = plan(["equal", "single"], [0], ["kind", "depth"])
    for run in runs[:2]:
        _finish(run, tmp_path, _values())
    finished = collect(runs, tmp_path)
    assert "all/Δm" not in [metric.name for metric in summarize(finished)[0]]
    assert explanation(finished) == ""
    _finish(runs[2], tmp_path, _values(error=2.0))
    finished = collect(runs, tmp_path)
    assert summarize(finished)[1]["equal"]["all/Δm"].mean == pytest.approx((0 + 0 - 50) / 3)
    assert explanation(finished) == (
        "Δm: the mean change over 3 metrics against each task alone, which reached, over its seeds: kind accuracy 0.5; "
        "kind mean iou 0.25; depth absolute error 2 m."
    )


def test_a_metric_that_is_0_alone_is_left_out_and_named(tmp_path: Path) -> None:
    runs = plan(["equal", "single"], [0], ["kind", "depth"])
    for run in runs:
        _finish(run, tmp_path, _values(iou=0.0, error=1.0 if run.alone else 1.5))
    finished = collect(runs, tmp_path)
    assert summarize(finished)[1]["equal"]["all/Δm"].mean == pytest.approx((0 + 50) / 2)
    assert "over 2 metrics" in explanation(finished)
    assert explanation(finished).endswith("Left out, as there is no change relative to 0: kind mean iou.")


@pytest.mark.parametrize("arms", [["equal", "pcgrad", "single"], ["single", "equal", "pcgrad"]])
def test_arms_of_other_tasks_are_not_compared(tmp_path: Path, arms: list[str]) -> None:
    runs = plan(arms, [0], ["kind", "depth"])
    for run in runs:
        _finish(run, tmp_path, _values(), ("kind",) if run.arm == "pcgrad" else ("kind", "depth"))
    with pytest.raises(RunError, match=r"pcgrad/seed-0 and .*equal/seed-0 cannot be compared: they differ in tasks;"):
        collect(runs, tmp_path)


def test_scores_of_single_tasks_are_not_drawn_beside_means_over_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan(["equal", "single"], [0], ["kind", "depth"])
    for run in runs:
        _finish(run, tmp_path, _values())
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_scores(collect(runs, tmp_path), tmp_path, tmp_path / "scores.png", title="t")
    assert drawn[0].axes[0].get_legend_handles_labels()[1] == ["equal"]


def test_a_configuration_or_table_that_is_damaged_is_named(tmp_path: Path) -> None:
    (run,) = plan(["equal"], [0], [])
    _finish(run, tmp_path, _values())
    folder = run.folder(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"config\.json: expected an object under 'arguments'"):
        collect([run], tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json: cannot be read \(No such file"):
        collect([run], tmp_path)
    (folder / "config.json").write_text('{"arguments": {}}')
    for damaged in ("", "arm,mean\n", "metric,best,unit,primary,floor,value\nkind/accuracy\n"):
        (folder / "table.csv").write_text(damaged)
        with pytest.raises(RunError, match=r"table\.csv: not a table of a finished run"):
            collect([run], tmp_path)
