"""Planted faults are found where they were planted, and nothing is found where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.planted import Given, collapse_run, conflict_run, healthy_run, run_columns, write_layers, write_log

from gradsurgery.report import Finding, findings, read_run
from gradsurgery.report.facts import conflicts, drift, shares
from gradsurgery.report.rules.by_layer import layer_conflicts

NAN = float("nan")
A_AND_B = ("a", "b")


def _kinds(found: list[Finding], severity: str) -> set[str]:
    return {finding.kind for finding in found if finding.severity == severity}


def _of(found: list[Finding], kind: str, severity: str | None = None) -> list[Finding]:
    return [one for one in found if one.kind == kind and severity in (None, one.severity)]


def _judged(folder: Path, columns: dict[str, Any]) -> list[Finding]:
    return findings(read_run(write_log(folder, columns)))


# --- facts ---


def test_shares_are_means_over_steps_in_which_all_are_there(tmp_path: Path) -> None:
    columns = {
        "norm/a": [3, 1, NAN], "norm/b": [1, 1, 7], "loss/a": [1, 1, 1], "loss/b": [1, 3, 1], "balance/a": [1, 1, 1],
        "balance/b": [3, 1, 1],
    }  # fmt: skip
    part = shares(read_run(write_log(tmp_path, columns)), A_AND_B)
    assert part.gradient == pytest.approx({"a": 0.625, "b": 0.375})
    assert part.loss == pytest.approx({"a": 1 / 3, "b": 2 / 3})


def test_a_conflict_counts_negative_cosines(tmp_path: Path) -> None:
    columns = {"norm/a": [1] * 4, "norm/b": [1] * 4, "cosine/a-b": [0.5, -0.25, 0.0, -0.75]}
    (pair,) = conflicts(read_run(write_log(tmp_path, columns)))
    assert (pair.steps, pair.rate, pair.lowest) == (4, 0.5, -0.75)
    assert (pair.mean.value, pair.mean_in_conflict, pair.last_quarter) == pytest.approx((-0.125, -0.5, -0.75))
    assert pair.stretches == (), "four steps are no stretch"


def test_a_drift_compares_the_last_two_quarters(tmp_path: Path) -> None:
    columns = {"weight/a": [9, 9, 2, 2, 1, 1, 1.04, 1.02], "weight/b": [9, 9, 2, 2, 1, 1, 1.2, 1.2]}
    run = read_run(write_log(tmp_path, columns))
    settled = drift(run, "weight/a")
    assert (settled.third, settled.last) == pytest.approx((1.0, 1.03))
    assert settled.settled
    assert not drift(run, "weight/b").settled


# --- conflict: which pair, when, where ---


def test_a_conflict_is_found_in_its_pair_its_steps_and_its_layer(tmp_path: Path) -> None:
    run = read_run(conflict_run(tmp_path))
    (pair,) = [pair for pair in conflicts(run) if pair.stretches]
    assert (pair.one, pair.other) == ("seg", "depth")
    (stretch,) = pair.stretches
    assert (stretch.first, stretch.last) == (100, 249)
    assert stretch.mean.value == pytest.approx(-0.5, abs=0.03)
    (layer,) = layer_conflicts(run, "seg", "depth")
    assert (layer.layer, layer.first, layer.last, layer.steps) == ("trunk.2", 100, 249, 150)
    found = findings(run)
    assert found[0].kind == "verdict"
    assert found[0].severity == "warning"
    assert "Surgery may help: seg and depth" in found[0].sentence
    assert "2201.04122" in found[0].advice
    (where,) = _of(found, "layers")
    assert where.sentence == (
        "seg and depth conflict at trunk.2 (steps 100–249, cosine −0.69); not at stem, trunk.0, trunk.1 and trunk.3."
    )
    (when,) = _of(found, "conflict", "warning")
    assert "seg and depth conflict strongly in steps 100–249" in when.sentence
    assert when.evidence["column"] == "cosine/seg-depth"
    assert len(_of(found, "conflict", "ok")) == 2


def test_two_stretches_are_told_apart(tmp_path: Path) -> None:
    steps = np.arange(400)
    torn = ((steps >= 50) & (steps < 120)) | (steps >= 300)
    run = read_run(write_log(tmp_path, run_columns(400, means={"seg-pose": np.where(torn, -0.4, 0.3)})))
    (pair,) = [pair for pair in conflicts(run) if pair.stretches]
    assert [(one.first, one.last) for one in pair.stretches] == [(50, 119), (300, 399)]


def test_weak_conflict_throughout_is_worth_a_note_alone(tmp_path: Path) -> None:
    found = _judged(tmp_path, run_columns(means={"seg-depth": -0.08}, noise=0.05))
    assert found[0].severity == "ok"
    (pair,) = _of(found, "conflict", "note")
    assert "weakly throughout" in pair.sentence
    assert "leave alone" in pair.sentence


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_noise_around_zero_is_no_conflict(tmp_path: Path, noise: float, seed: int) -> None:
    columns = run_columns(means=dict.fromkeys(("seg-depth", "seg-pose", "depth-pose"), 0.0), noise=noise, seed=seed)
    found = _judged(tmp_path, columns)
    assert found[0].severity == "ok", found[0].sentence
    assert not _kinds(found, "warning")
    pairs = _of(found, "conflict")
    assert len(pairs) == 3
    assert all(pair.severity == "ok" and "as chance makes them of cosines around zero" in pair.sentence for pair in pairs)


def test_a_negative_mean_of_a_few_wild_steps_is_called_uncertain(tmp_path: Path) -> None:
    cosines = np.tile([0.8, -0.95], 10)
    found = _judged(tmp_path, {"norm/a": np.ones(20), "norm/b": np.ones(20), "cosine/a-b": cosines})
    (pair,) = _of(found, "conflict")
    assert (pair.severity, "too uncertain to call it a conflict" in pair.sentence) == ("note", True)


def test_constant_cosines_conflict_or_do_not(tmp_path: Path) -> None:
    base = {"norm/a": np.ones(60), "norm/b": np.ones(60)}
    opposed = _judged(tmp_path / "opposed", {**base, "cosine/a-b": np.full(60, -0.5)})
    assert "throughout (steps 0–59)" in _of(opposed, "conflict", "warning")[0].sentence
    assert _judged(tmp_path / "agreeing", {**base, "cosine/a-b": np.full(60, 1.0)})[0].severity == "ok"


def test_layers_in_conflict_that_cancel_out_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_log(tmp_path, run_columns(200, tasks=A_AND_B, means={"a-b": 0.1}, noise=0.05))
    level = {"early": 0.5, "late": -0.4}
    write_layers(tmp_path, {name: {"a-b": mean + 0.1 * rng.standard_normal(200)} for name, mean in level.items()}, 20)
    found = findings(read_run(tmp_path))
    assert "Tasks conflict at some layers" in found[0].sentence
    assert 'group_by="layer"' in found[0].advice
    assert "a and b conflict at late" in _of(found, "layers", "warning")[0].sentence


def test_layers_of_noise_are_no_conflict(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write_log(tmp_path, run_columns(300, tasks=A_AND_B))
    write_layers(tmp_path, {f"layer.{place}": {"a-b": 0.3 * rng.standard_normal(300)} for place in range(40)}, 10)
    found = findings(read_run(tmp_path))
    assert found[0].severity == "ok"
    assert not _of(found, "layers", "warning")


# --- collapse ---


def test_a_dead_head_is_a_collapse_with_its_step(tmp_path: Path) -> None:
    found = findings(read_run(collapse_run(tmp_path)))
    (collapse,) = _of(found, "collapse", "warning")
    assert collapse.sentence.startswith("depth collapses: its gradient has gone below 1 % of its first length by step 120")
    assert collapse.evidence["since step"] == 120
    assert "Something is broken" in found[0].sentence


def test_a_task_that_is_learned_has_not_collapsed(tmp_path: Path) -> None:
    columns = run_columns()
    fall = np.exp(-np.arange(300) / 30)
    columns["norm/depth"], columns["loss/depth"] = fall, fall
    found = _judged(tmp_path, columns)
    assert not _of(found, "collapse", "warning")
    assert "it is learned, or its loss is weighed down" in _of(found, "collapse", "note")[0].sentence


def test_a_task_that_was_short_from_the_start_has_not_collapsed(tmp_path: Path) -> None:
    columns = run_columns()
    columns["norm/depth"] = columns["norm/depth"] / 1000
    found = _judged(tmp_path, columns)
    assert not _of(found, "collapse")
    assert "dominates" in _of(found, "dominance", "warning")[0].sentence
    assert "lengths are lopsided" in found[0].sentence


def test_a_weight_that_goes_to_zero_is_a_collapse(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["balance/a"], columns["balance/b"] = np.ones(300), np.where(np.arange(300) < 200, 1.0, 1e-5)
    (collapse,) = _of(_judged(tmp_path, columns), "collapse", "warning")
    assert "b's loss weight has gone to 1.00·10⁻⁵ by step 200" in collapse.sentence


def test_a_detached_head_has_a_loss_and_no_gradient(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    gone = np.arange(300) >= 150
    for name in ("norm/b", "cosine/a-b"):
        columns[name] = np.where(gone, NAN, columns[name])
    (collapse,) = _of(_judged(tmp_path, columns), "collapse", "warning")
    assert "b has a loss but no gradient from step 150 on" in collapse.sentence


def test_losses_that_are_nan_or_rise_are_warned_of(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["loss/a"] = [Given("nan") if step in (70, 71) else 1.0 for step in range(300)]
    columns["loss/b"] = np.linspace(1, 3, 300)
    nan, risen = _of(_judged(tmp_path, columns), "loss", "warning")
    assert "NaN or infinite in 2 recorded steps, first in step 70" in nan.sentence
    assert "b's loss stands above its start" in risen.sentence


# --- dominance, weights, steps ---


def test_dominance_and_disagreement_of_loss_and_gradient(tmp_path: Path) -> None:
    columns = {"norm/a": [4] * 8, "norm/b": [1] * 8, "loss/a": [1] * 8, "loss/b": [3] * 8}
    gradient, loss = _of(_judged(tmp_path, columns), "dominance")
    assert "a dominates: its gradient is 4.00 times as long as b's" in gradient.sentence
    assert "a 80 %, b 20 %" in gradient.sentence
    assert "Loss and gradient disagree: b has the larger loss, a the stronger pull" in loss.sentence


def test_equal_tasks_do_not_dominate(tmp_path: Path) -> None:
    columns = {"norm/a": [1, 1], "norm/b": [1, 1], "loss/a": [1, 1], "loss/b": [1, 1]}
    assert any("No task dominates" in one.sentence for one in _judged(tmp_path, columns))


def test_weights_settle_drift_or_stay(tmp_path: Path) -> None:
    columns = {f"{kind}/{task}": [1.0] * 8 for kind in ("norm", "weight", "balance", "variance") for task in A_AND_B}
    columns["balance/b"] = [1, 1, 1, 1, 1, 1, 2, 2]
    columns["variance/b"] = [1, 1, 1, 1, 1, 1, 1.01, 1.01]
    balance, variance, weight = _of(_judged(tmp_path, columns), "weights")
    assert "b 1.000 → 2.000; b still drifted by more than 5 %" in balance.sentence
    assert "they had settled" in variance.sentence
    assert weight.sentence == "The method's gradient weights stayed at a 1.000, b 1.000."


def test_surgery_that_did_something_is_told_from_a_sum(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    (plain,) = _of(_judged(tmp_path / "sum", columns), "surgery")
    assert "are the same for all tasks" in plain.sentence
    columns["weight/b"] = np.full(300, 3.0)
    (other,) = _of(_judged(tmp_path / "other", columns), "surgery")
    assert "in 100 % of the recorded steps, by 100 % of their size" in other.sentence


def test_steps_that_went_wrong_are_counted(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["nonfinite"][[17, 40]] = 1
    columns["norm/a"] = [Given("nan") if step in (17, 40) else value for step, value in enumerate(columns["norm/a"])]
    columns["norm/b"] = [NAN if step < 30 else value for step, value in enumerate(columns["norm/b"])]
    columns["converged"] = np.where(np.arange(300) == 5, 0.0, 1.0)
    found = _judged(tmp_path, columns)
    sentences = " ".join(one.sentence for one in found)
    assert "In 2 of 300 recorded steps a gradient of a was infinite or NaN, first in step 17, last in step 40" in sentences
    assert "did not converge in 1 of 300 recorded steps, first in step 5" in sentences
    assert "b had no gradient in 10 % of the recorded steps" in sentences


# --- too little to say ---


def test_health_is_said_with_what_it_rests_on(tmp_path: Path) -> None:
    found = findings(read_run(healthy_run(tmp_path)))
    assert "Surgery is not needed, as far as this log shows" in found[0].sentence
    assert {one.severity for one in found} == {"ok"}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"norm/a": [1.0] * 60, "loss/a": [1.0] * 60}, "There is one task, a"),
        ({"val/score": [1.0] * 60}, "no columns norm/…, weight/… or loss/…"),
        ({"loss/a": [1.0] * 60, "loss/b": [1.0] * 60}, "holds no lengths of gradients"),
        ({"norm/a": [1.0] * 60, "norm/b": [NAN] * 60, "cosine/a-b": [NAN] * 60}, "no two tasks had a gradient"),
        (run_columns(20, tasks=A_AND_B), "20 recorded steps are too few for a verdict"),
    ],
    ids=["one task", "no tasks", "no lengths", "never both", "short"],
)
def test_what_a_log_cannot_say_is_said(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    verdict = _judged(tmp_path, columns)[0]
    assert says in verdict.sentence
    assert verdict.severity == "note"
