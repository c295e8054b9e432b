"""Which runs a comparison's arms need, and what is no arm."""

from pathlib import Path

import pytest
from harness.arms import arm_options, plan
from harness.errors import RunError


@pytest.mark.parametrize(
    ("arm", "method", "balancer"),
    [
        ("equal", "sum", "none"),
        ("pcgrad", "pcgrad", "none"),
        ("uncertainty", "sum", "uncertainty"),
        ("cagrad+gradnorm", "cagrad", "gradnorm"),
        ("gradnorm+cagrad", "cagrad", "gradnorm"),
        ("rlw", "sum", "rlw"),
    ],
)
def test_an_arm_is_a_method_a_balancer_or_both(arm: str, method: str, balancer: str) -> None:
    assert arm_options(arm) == ("--method", method, "--balancer", balancer)


@pytest.mark.parametrize("arm", ["nothing", "pcgrad+cagrad", "gradnorm+uncertainty", "none", "", "pcgrad+"])
def test_other_names_are_refused_with_what_there_is(arm: str) -> None:
    with pytest.raises(RunError, match=r"--arms .*expected 'equal'.*pcgrad.*uncertainty"):
        arm_options(arm)


def test_runs_go_seed_by_seed_and_single_is_one_a_task() -> None:
    runs = plan(["equal", "single"], [3, 5], ["depth", "normal"])
    assert [(run.arm, run.seed) for run in runs] == [
        ("equal", 3), ("single-depth", 3), ("single-normal", 3), ("equal", 5), ("single-depth", 5), ("single-normal", 5),
    ]  # fmt: skip
    assert runs[1].options[-2:] == ("--tasks", "depth")
    assert runs[1].folder(Path("out")) == Path("out/single-depth/seed-3")


def test_single_needs_to_know_the_tasks() -> None:
    with pytest.raises(RunError, match="--arms single: expected --tasks"):
        plan(["single"], [0], [])


def test_arms_and_seeds_given_twice_are_refused() -> None:
    with pytest.raises(RunError, match="--arms pcgrad: given twice"):
        plan(["pcgrad", "equal", "pcgrad"], [0], [])
    with pytest.raises(RunError, match="--seeds 1: given twice"):
        plan(["pcgrad"], [1, 1], [])
