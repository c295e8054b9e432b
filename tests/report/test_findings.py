"""Planted faults are found where they were planted, and nothing is found where there is nothing."""

from __future__ import annotations

import json
import math
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
    write_log(tmp_path, columns)
    part = shares(read_run(tmp_path), A_AND_B)
    assert part.gradient == pytest.approx({"a": 0.625, "b": 0.375})
    assert part.loss == pytest.approx({"a": 5 / 12, "b": 7 / 12}), "whether the losses are weighed already is not known"
    (tmp_path / "config.json").write_text('{"balancer": "uw"}')
    assert shares(read_run(tmp_path), A_AND_B).loss == pytest.approx({"a": 1 / 3, "b": 2 / 3})


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
    assert found[0].severity == "note"
    assert (
        "and the method of this run acted on it: seg and depth pull the shared part apart in 50 % of the recorded steps"
        in found[0].sentence
    )
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


def test_an_uncertain_conflict_is_no_clean_bill(tmp_path: Path) -> None:
    cosines = np.tile([0.7, -0.95], 30)
    found = _judged(tmp_path, {"norm/a": np.ones(60), "norm/b": np.ones(60), "cosine/a-b": cosines})
    assert found[0].severity == "note"
    assert "No conflict is certain, but a and b lean to one: their cosine averages −0.12 ± 0.11" in found[0].sentence


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


def test_a_conflict_at_all_layers_is_not_said_to_leave_others_alone(tmp_path: Path) -> None:
    write_log(tmp_path, run_columns(200, tasks=A_AND_B, means={"a-b": -0.4}))
    level = {"1": -0.2, "2": -0.5, "4": -0.3, "5": -0.25, "9": -0.4}
    write_layers(tmp_path, {name: {"a-b": np.full(200, mean)} for name, mean in level.items()}, 20)
    (where,) = _of(findings(read_run(tmp_path)), "layers", "warning")
    assert where.sentence == (
        "a and b conflict at all 5 layers, most at layer 2 (throughout, cosine −0.50), layer 9 (throughout, cosine −0.40) "
        "and layer 4 (throughout, cosine −0.30)."
    )
    assert where.advice == ""
    assert "layer 9" in where.evidence


def test_a_layer_that_conflicts_for_a_while_comes_after_those_that_do_throughout(tmp_path: Path) -> None:
    write_log(tmp_path, run_columns(200, tasks=A_AND_B, means={"a-b": -0.4}))
    early = np.where(np.arange(200) < 40, -0.9, 0.5)
    write_layers(tmp_path, {"0": {"a-b": early}, "1": {"a-b": np.full(200, -0.12)}, "2": {"a-b": np.full(200, 0.3)}}, 20)
    (where,) = _of(findings(read_run(tmp_path)), "layers", "warning")
    assert where.sentence == (
        "a and b conflict at layer 1 (throughout, cosine −0.12); for a while, though not on average over the run, at layer 0 "
        "(steps 0–39, cosine −0.90); not at layer 2."
    )
    assert "decides at layer 1 and layer 0 by what" in where.advice
    (tmp_path / "config.json").write_text('{"method": "pcgrad", "group_by": "layer"}')
    (where,) = _of(findings(read_run(tmp_path)), "layers", "warning")
    assert where.advice == "", "that is what ran"


def test_layers_of_noise_are_no_conflict(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write_log(tmp_path, run_columns(300, tasks=A_AND_B))
    write_layers(tmp_path, {f"layer.{place}": {"a-b": 0.3 * rng.standard_normal(300)} for place in range(40)}, 10)
    found = findings(read_run(tmp_path))
    assert found[0].severity == "ok"
    assert not _of(found, "layers", "warning")


def test_cosines_that_wander_are_no_conflict(tmp_path: Path) -> None:
    """Neighbours that resemble each other make stretches of any sign: of 40 runs without conflict hardly one is warned of."""
    warned = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        wander = np.zeros(350)
        for step in range(1, 350):
            wander[step] = 0.8 * wander[step - 1] + 0.18 * rng.standard_normal()
        columns = run_columns(300, tasks=A_AND_B) | {"cosine/a-b": wander[50:].clip(-1, 1)}
        warned += bool(_of(_judged(tmp_path / str(seed), columns), "conflict", "warning"))
    assert warned <= 3


def test_layers_that_wander_with_the_run_are_no_conflict(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wander = np.zeros((41, 350))
    for step in range(1, 350):
        wander[:, step] = 0.8 * wander[:, step - 1] + 0.18 * rng.standard_normal(41)
    write_log(tmp_path, run_columns(300, tasks=A_AND_B) | {"cosine/a-b": wander[0, 50:].clip(-1, 1)})
    write_layers(tmp_path, {f"layer.{place}": {"a-b": wander[place + 1, 50:]} for place in range(40)}, 10)
    assert not _of(findings(read_run(tmp_path)), "layers", "warning")


def test_a_conflict_is_said_of_the_steps_that_have_both(tmp_path: Path) -> None:
    columns, late = run_columns(tasks=A_AND_B, means={"a-b": -0.5}), np.arange(300) >= 150
    for name in ("norm/b", "loss/b", "weight/b", "cosine/a-b"):
        columns[name] = np.where(late, columns[name], NAN)
    found = _judged(tmp_path, columns)
    assert "in all recorded steps that have both (steps 150–299)" in found[0].sentence
    assert "in all steps that have both (steps 150–299)" in _of(found, "conflict", "warning")[0].sentence
    assert not any("throughout" in one.sentence for one in found)


def test_barely_negative_cosines_are_not_called_chance(tmp_path: Path) -> None:
    found = _judged(tmp_path, run_columns(tasks=A_AND_B, means={"a-b": -0.04}, noise=0.01))
    (pair,) = _of(found, "conflict", "ok")
    assert "100 % of the steps are negative, but so little as makes no difference" in pair.sentence


def test_layers_that_were_not_measured_are_not_said_to_be_free(tmp_path: Path) -> None:
    write_log(tmp_path, run_columns(200, tasks=A_AND_B, means={"a-b": 0.1}))
    level = {"early": 0.5, "late": -0.4, "alone": NAN}
    write_layers(tmp_path, {name: {"a-b": np.full(200, mean)} for name, mean in level.items()}, 20)
    (where,) = _of(findings(read_run(tmp_path)), "layers", "warning")
    assert where.sentence.endswith("; not at early.")


def test_after_surgery_the_verdict_does_not_ask_for_it(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B, means={"a-b": -0.5})
    columns["weight/b"] = np.full(300, 1.5)
    verdict = _judged(tmp_path, columns)[0]
    assert "The tasks conflict, and the method of this run acted on it" in verdict.sentence
    assert 'compare with a tuned "sum" over several seeds' in verdict.advice
    assert "Try" not in verdict.advice


@pytest.mark.parametrize(
    ("method", "weight", "says"),
    [
        ("cagrad", 1.5, "The tasks conflict, and cagrad acted on it: a and b"),
        ("pcgrad", 1.0, "The tasks conflict, and pcgrad ran, with the same weight for every task: a and b"),
        ("graddrop", NAN, "The tasks conflict, and graddrop was at work: a and b"),
        ("constant", 1.5, "Surgery may help: a and b"),
        ("sum", 1.0, "Surgery may help: a and b"),
    ],
)
def test_the_method_that_ran_is_named_and_not_recommended(tmp_path: Path, method: str, weight: float, says: str) -> None:
    columns = run_columns(tasks=A_AND_B, means={"a-b": -0.5}) | {"weight/b": np.full(300, weight)}
    if math.isnan(weight):
        columns["weight/a"] = np.full(300, NAN)
    write_log(tmp_path, columns)
    (tmp_path / "config.json").write_text(json.dumps({"method": method, "group_by": None, "every": 1, "tasks": ["a", "b"]}))
    found = findings(read_run(tmp_path))
    assert found[0].sentence.startswith(says)
    plain = method in ("sum", "constant")
    assert any("pcgrad, upgrad" in one.advice for one in found) == plain
    assert (found[0].severity == "warning") == plain
    assert ("method" in found[0].evidence) != plain


@pytest.mark.parametrize("steps", [20, 30, 49, 50])
def test_every_verdict_on_few_steps_says_that_they_are_few(tmp_path: Path, steps: int) -> None:
    conflict = run_columns(steps, tasks=A_AND_B, means={"a-b": -0.5}, noise=0.05)
    broken = run_columns(steps, tasks=A_AND_B) | {"nonfinite": np.ones(steps)}
    for name, columns in {"calm": run_columns(steps, tasks=A_AND_B), "conflict": conflict, "broken": broken}.items():
        verdict = _judged(tmp_path / name, columns)[0]
        assert (f"{steps} recorded steps" in verdict.sentence and "too few" in verdict.sentence) == (steps < 50), verdict.sentence
        assert ("enough for a verdict" in verdict.evidence) == (steps < 50)


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
    assert "its loss has fallen, too" in _of(found, "collapse", "note")[0].sentence
    assert "it is learned, or its loss is weighed down" in _of(found, "collapse", "note")[0].sentence


@pytest.mark.parametrize(
    ("loss", "severity", "says"),
    [
        ((-5.0, -50.0), "note", "its loss has fallen (−5.00 → −50.0)"),
        ((0.0, 0.0), "warning", "its loss shows no progress (0 → 0)"),
        ((2.0, 1.8), "warning", "its loss has not halved"),
    ],
)
def test_a_collapse_is_told_with_what_the_loss_did(tmp_path: Path, loss: tuple[float, float], severity: str, says: str) -> None:
    columns, late = run_columns(tasks=A_AND_B), np.arange(300) >= 100
    columns["norm/b"] = np.where(late, 1e-3, columns["norm/b"])
    columns["loss/b"] = np.where(late, loss[1], loss[0])
    (collapse,) = _of(_judged(tmp_path, columns), "collapse")
    assert (collapse.severity, says in collapse.sentence) == (severity, True), collapse.sentence


def test_a_scale_on_all_lengths_is_no_collapse_of_each(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    scale = np.where(np.arange(300) < 100, 65536.0, 256.0)
    columns |= {f"norm/{task}": columns[f"norm/{task}"] * scale for task in A_AND_B}
    columns |= {f"loss/{task}": np.ones(300) for task in A_AND_B}
    found = _judged(tmp_path, columns)
    (collapse,) = _of(found, "collapse")
    assert collapse.severity == "note"
    assert "gradients of all tasks have gone below 1 % of their first lengths by step 100" in collapse.sentence
    assert "float16 scaler" in collapse.advice
    assert "gone to nothing" not in found[0].sentence


def test_weights_that_even_lengths_out_are_no_collapse(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["norm/a"] = columns["norm/a"] * np.geomspace(1, 400, 300)
    columns |= {f"weight/{task}": 1 / columns[f"norm/{task}"] for task in A_AND_B}
    assert not _of(_judged(tmp_path / "method", columns), "collapse")
    columns = run_columns(tasks=A_AND_B)
    columns["balance/a"], columns["balance/b"] = np.ones(300), np.geomspace(1, 400, 300)
    assert not _of(_judged(tmp_path / "balancer", columns), "collapse"), "a's weight stays where it was"


def test_a_task_that_was_short_from_the_start_has_not_collapsed(tmp_path: Path) -> None:
    columns = run_columns()
    columns["norm/depth"] = columns["norm/depth"] / 1000
    found = _judged(tmp_path, columns)
    assert not _of(found, "collapse")
    assert "depth is drowned" in _of(found, "dominance", "warning")[0].sentence
    assert "lengths are lopsided" in found[0].sentence


def test_a_weight_that_goes_to_zero_is_a_collapse(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["balance/a"], columns["balance/b"] = np.ones(300), np.where(np.arange(300) < 200, 1.0, 1e-5)
    columns["norm/b"] = columns["norm/b"] * columns["balance/b"]
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


def test_a_loss_that_rises_is_not_called_broken(tmp_path: Path) -> None:
    verdict = _judged(tmp_path, run_columns(tasks=A_AND_B) | {"loss/b": np.minimum(np.linspace(0.01, 6, 300), 2)})[0]
    assert verdict.severity == "note"
    assert "but b's loss stands above its start" in verdict.sentence
    assert "meant to rise" in verdict.advice


def test_a_loss_that_only_scatters_has_not_risen(tmp_path: Path) -> None:
    risen = 0
    for seed in range(60):
        noise = 0.3 * np.random.default_rng(seed).standard_normal((2, 40))
        columns = run_columns(40, tasks=A_AND_B) | {f"loss/{task}": 1 + noise[place] for place, task in enumerate(A_AND_B)}
        risen += len(_of(_judged(tmp_path / str(seed), columns), "loss"))
    assert risen <= 3, "of 120"


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


def test_a_weight_that_came_to_rest_did_not_stay(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B) | {"balance/a": np.ones(300), "balance/b": np.where(np.arange(300) < 100, 5.0, 1.0)}
    balance, weight = _of(_judged(tmp_path, columns), "weights")
    assert "they had settled" in balance.sentence
    assert "stayed at" in weight.sentence


def test_weights_that_scatter_do_not_drift(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = run_columns(100, tasks=A_AND_B) | {f"weight/{task}": 1 + 0.3 * rng.standard_normal(100) for task in A_AND_B}
    (weight,) = _of(_judged(tmp_path, columns), "weights")
    assert weight.severity == "ok"
    assert "still drifted" not in weight.sentence


def test_equal_weights_of_another_size_are_the_sum_times_that(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B) | {f"weight/{task}": np.full(300, 0.5) for task in A_AND_B}
    (mean,) = _of(_judged(tmp_path, columns), "surgery")
    assert "the plain sum of the gradients times 0.500" in mean.sentence


def test_a_few_overflows_are_a_note(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B)
    columns["nonfinite"][:3] = 1
    found = _judged(tmp_path / "search", columns)
    assert _of(found, "steps")[0].severity == "note"
    assert found[0].severity == "ok"
    columns["nonfinite"][100:] = 1
    assert _of(_judged(tmp_path / "broken", columns), "steps")[0].severity == "warning"


def test_a_task_that_surgery_never_saw_is_found_by_its_loss(tmp_path: Path) -> None:
    columns = run_columns(tasks=A_AND_B) | {"loss/c": np.ones(300), "loss/total": np.ones(300), "absent": np.ones(300)}
    (absence,) = _of(_judged(tmp_path / "some", columns), "absence")
    assert absence.sentence == "1 more task never had a gradient in the 300 recorded steps."
    del columns["loss/total"]
    found = _judged(tmp_path / "one", columns)
    assert "c has a loss, but never had a gradient in the 300 recorded steps" in found[0].sentence
    assert found[0].severity == "warning"


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


# --- dominance ---


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ({"cls": 4.0, "box": 45.0, "anti": 51.0}, "cls is drowned: the median of the other tasks' gradients is 12.0 times as long"),
        ({"cls": 90.0, "box": 5.0, "anti": 5.0}, "cls dominates: its gradient is 18.0 times as long as"),
        ({"cls": 0.0, "box": 5.0, "anti": 5.0}, "cls is drowned: its gradient is zero in most steps"),
        ({"cls": 3.0, "box": 6.0, "anti": 6.0}, "cls pulls least: the median of the other tasks' gradients is 2.00 times as long"),
        ({"cls": 1.0, "box": 9.0}, "box dominates: its gradient is 9.00 times as long as cls's"),
    ],
)
def test_one_that_is_drowned_is_told_from_one_that_dominates(tmp_path: Path, lengths: dict[str, float], says: str) -> None:
    columns = run_columns(100, tasks=tuple(lengths)) | {f"norm/{task}": np.full(100, value) for task, value in lengths.items()}
    assert _of(_judged(tmp_path, columns), "dominance")[0].sentence.startswith(says)


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
        (run_columns(20, tasks=A_AND_B), "20 recorded steps with a cosine are too few for a verdict"),
        (run_columns(100, tasks=A_AND_B) | {"cosine/a-b": [0.1, *[NAN] * 99]}, "1 recorded step with a cosine is too few"),
        ({"norm/a": [5.0] * 3, "norm/b": [1.0] * 3, "cosine/a-b": [0.1] * 3}, "lengths are lopsided: 3 recorded steps"),
        ({"weight/a": [1.0, NAN] * 30, "weight/b": [NAN, 1.0] * 30}, "in every recorded step one task alone had a gradient"),
    ],
    ids=["one task", "no tasks", "no lengths", "never both", "short", "one cosine", "short and lopsided", "one at a time"],
)
def test_what_a_log_cannot_say_is_said(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    verdict = _judged(tmp_path, columns)[0]
    assert says in verdict.sentence
    assert verdict.severity == "note"
