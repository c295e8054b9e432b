"""Resumed runs write the same numbers as uninterrupted ones, and the loop answers signals at step boundaries."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.checkpoint import load_checkpoint
from harness.errors import RunError
from harness.log import read_log
from harness.resume_point import load_state, save_state
from harness.training import Training

COMBINATIONS = [
    ("sum", "split", "none"),
    ("pcgrad", "split", "uncertainty"),
    ("pcgrad", "detach", "gradnorm"),
    ("sum", "detach", "famo"),
    ("pcgrad", "split", "dwa"),
    ("sum", "split", "rlw"),
    ("pcgrad", "parameters", "uncertainty"),
    ("cagrad", "parameters", "gradnorm"),
]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("stop_at", [2, 4, 7])  # in an epoch, at its last step, in the next one; 4 steps an epoch
@pytest.mark.parametrize(("method", "form", "balancer"), COMBINATIONS)
def test_a_stopped_run_resumes_to_the_same_bits(
    toy: Any, start: Callable[..., Training], tmp_path: Path, method: str, form: str, balancer: str, stop_at: int
) -> None:
    options = ("--epochs", "3", "--method", method, "--form", form, "--balancer", balancer, "--clip-norm", "1")
    assert start(toy(), *options, out="whole").run() is None

    def interrupt(step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = start(toy(after_step=interrupt), *options, out="parts")
    assert stopped.run() == signal.SIGTERM
    assert stopped.step == stop_at  # at the boundary of the step in which the signal came
    torch.rand(5)  # whatever happens between the two processes
    resumed = start(toy(), *options, "--resume", out="parts")
    assert resumed.step == stop_at
    assert resumed.run() is None

    assert (tmp_path / "parts/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    for name, load in (("last", load_state), ("best.pt", load_checkpoint)):
        parts, whole = (load(tmp_path / run / "checkpoints" / name) for run in ("parts", "whole"))
        assert _equal(parts, whole)


def test_a_run_killed_after_its_checkpoint_resumes_to_the_same_bits(
    toy: Any, start: Callable[..., Training], tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 7:
            raise Killed  # no handler, no checkpoint, three rows in the log that no checkpoint knows

    start(toy(), "--epochs", "3", out="whole").run()
    with pytest.raises(Killed):
        start(toy(after_step=kill), "--epochs", "3", out="parts").run()
    rows = read_log(tmp_path / "parts/log.csv")["loss/side"]
    assert max(rows) == 6
    resumed = start(toy(), "--resume", out="parts")
    assert resumed.step == 4
    resumed.run()
    assert (tmp_path / "parts/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_again(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(), "--epochs", "2", out="whole").run()
    interrupted = start(toy(), "--epochs", "2", out="parts")
    interrupted.log.row(1, 0, {"lr": 1.0})
    interrupted.log.close()
    start(toy(), "--resume", out="parts").run()
    assert (tmp_path / "parts/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()


def test_a_finished_run_has_nothing_left_to_do(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(), "--epochs", "2").run()
    log = (tmp_path / "run/log.csv").read_bytes()
    again = start(toy(), "--resume")
    assert again.finished
    assert again.run() is None
    assert (tmp_path / "run/log.csv").read_bytes() == log


def test_training_lowers_the_losses_and_logs_every_step(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(samples=18), "--epochs", "40", "--lr", "0.03").run()  # 4 full batches of 4 an epoch
    log = read_log(tmp_path / "run/log.csv")
    assert list(log["loss/height"]) == list(range(1, 161))
    assert list(log["val/height/error"]) == list(range(4, 161, 4))
    errors = list(log["val/height/error"].values())
    assert errors[-1] < 0.3 * errors[0]
    assert set(log["conflicts"].values()) <= {0.0, 1.0}
    assert all(-1 <= cosine <= 1 for cosine in log["cosine/side-height"].values())


def test_dwa_hears_of_every_epoch(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    training = start(toy(), "--epochs", "4", "--balancer", "dwa", "--lr", "0.03")
    training.run()
    log = read_log(tmp_path / "run/log.csv")
    means = {task: [sum(log[f"loss/{task}"][4 * e + k] for k in range(1, 5)) / 4 for e in range(4)] for task in ("side", "height")}
    assert {log["balance/side"][step] for step in range(1, 9)} == {1.0}
    for epoch in (2, 3):
        rates = torch.tensor([means[task][epoch - 1] / means[task][epoch - 2] for task in means])
        found = [log[f"balance/{task}"][4 * epoch + 1] for task in means]
        assert found == pytest.approx((2 * (rates / 2).softmax(0)).tolist(), rel=1e-4)


def test_early_stopping_ends_the_run(toy: Any, start: Callable[..., Training]) -> None:
    training = start(toy(), "--epochs", "50", "--lr", "0", "--early-stop", "3")
    assert training.run() is None
    assert training.epoch == 4  # the first is the best, three more are no better


def test_an_absent_task_trains_the_others(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(absent="side"), "--epochs", "2", "--balancer", "uncertainty").run()
    log = read_log(tmp_path / "run/log.csv")
    assert log["loss/side"] == {}
    assert log["cosine/side-height"] == {}
    assert len(log["loss/height"]) == 8


def test_checkpoints_of_another_problem_are_refused(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(), "--epochs", "1").run()
    path = tmp_path / "run/checkpoints/last"
    state = load_state(path)
    del state["model"]["heads.side.weight"]
    save_state(path, state)
    with pytest.raises(RunError, match=r"last: the checkpoint does not fit this run"):
        start(toy(), "--resume")


def test_workers_do_not_change_the_numbers(toy: Any, start: Callable[..., Training], tmp_path: Path) -> None:
    start(toy(), "--epochs", "2", out="none").run()
    start(toy(), "--epochs", "2", "--workers", "1", out="one").run()
    assert (tmp_path / "none/log.csv").read_bytes() == (tmp_path / "one/log.csv").read_bytes()
