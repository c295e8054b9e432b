"""The trainer from its command line: it learns, tasks conflict, it resumes to the same bytes, it refuses clearly."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar10 import train
from cifar10.problem import CIFAR10Problem
from harness.log import read_log
from matplotlib.image import imread

TINY = ("--train-count", "40", "--val-count", "20", "--batch-size", "10", "--width", "8", "--device", "cpu")


def _train(out: Path, *options: str) -> int:
    return train.main(["--out", str(out), *TINY, *options])


def test_training_lowers_the_losses_and_fills_the_run_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, "--epochs", "12", "--lr", "1e-2", "--width", "16") == 0
    log = read_log(out / "log.csv")
    for task in ("fine", "coarse", "rotation"):
        losses = list(log[f"loss/{task}"].values())
        assert len(losses) == 48
        assert np.mean(losses[-8:]) < np.mean(losses[:4])
    rate = np.mean([value < 0 for value in log["cosine/fine-rotation"].values()])
    assert rate > 0.2  # the default demonstrates conflict
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["floor/coarse/accuracy"] == pytest.approx(0.6)
    assert {f"val/{task}/{name}" for task in ("fine", "coarse", "rotation") for name in ("accuracy", "macro_f1")} <= set(metrics)
    note = (out / "note.md").read_text()
    assert "40 training and 20 validation images, each turned by a random quarter" in note
    assert "coarse 'animal'" in note
    assert "## What rotation changes" in note
    for picture in ("losses", "conflict", "predictions"):
        assert imread(out / f"pictures/{picture}.png").std() > 0.05


@pytest.mark.parametrize(
    "options",
    [
        ("--tasks", "coarse", "--method", "sum", "--augment"),
        ("--form", "detach", "--balancer", "uncertainty", "--amp", "bf16", "--tasks", "fine", "coarse"),
        ("--form", "parameters", "--method", "cagrad", "--workers", "1"),
    ],
)
def test_every_way_of_training_runs_to_its_end(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert _train(tmp_path / "run", "--epochs", "1", *options) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert np.isfinite([value for value in metrics.values() if value is not None]).all()


def test_official_files_are_trained_on(tmp_path: Path, official: Path) -> None:
    assert _train(tmp_path / "run", "--epochs", "1", "--data", str(official)) == 0
    assert "CIFAR-10" in (tmp_path / "run/note.md").read_text()


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(resumes: Callable[..., None]) -> None:
    resumes(_train, CIFAR10Problem, ("--epochs", "3", "--augment", "--method", "cagrad"), call=6, step=6)


def test_errors_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in ((tmp_path / "nowhere", "nowhere"), (tmp_path, "nothing in it")):
        assert _train(tmp_path.parent / "run-of-errors", "--data", str(path)) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path.parent / "run-of-errors").exists()


def test_the_same_seed_gives_the_same_network() -> None:
    weights = []
    for drawn in (0, 5):
        torch.manual_seed(drawn)  # what was drawn before does not matter
        problem = CIFAR10Problem(train.build_parser().parse_args(["--out", "unused", *TINY]))
        weights.append(problem.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
