"""The trainer from its command line: it learns, its run folder is complete, it resumes to the same numbers, it refuses clearly."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.log import read_log
from harness.resume_point import load_state
from matplotlib.image import imread
from nyuv2 import train
from nyuv2.models import builder
from nyuv2.models.builder import BACKBONES
from nyuv2.pictures import palette
from nyuv2.problem import NYUv2Problem
from torchvision.models import VisionTransformer

TRAIN = Path(__file__).parents[3] / "examples/nyuv2/train.py"
TINY = (
    "--size", "32", "48", "--train-count", "8", "--val-count", "3", "--batch-size", "2", "--channels", "8", "--device", "cpu",
)  # fmt: skip


def _train(out: Path, *options: str) -> int:
    return train.main(["--out", str(out), *TINY, *options])


def _same_run(one: Path, other: Path) -> None:
    assert (one / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    states = [load_state(run / "checkpoints/last")["model"] for run in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _start_process(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), "--out", str(out), *TINY, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 300
    while not (out / "checkpoints/last").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_training_lowers_the_losses_and_fills_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ("--epochs", "8", "--lr", "1e-2", "--tasks", "segmentation", "depth", "normal")
    assert _train(out, *options, "--balancer", "uncertainty") == 0
    log = read_log(out / "log.csv")
    for task in ("segmentation", "depth", "normal"):
        losses = list(log[f"loss/{task}"].values())
        assert len(losses) == 32
        assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])

    metrics = json.loads((out / "metrics.json").read_text())
    val = {name: series[32] for name, series in log.items() if name.startswith("val/")}
    assert len(val) == 11
    assert metrics.items() >= val.items()
    assert {f"floor/{name.removeprefix('val/')}" for name in val} <= set(metrics)
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["balancer"] == "uncertainty"
    assert config["versions"]["torch"] == torch.__version__
    note = (out / "note.md").read_text()
    for words in ("## Against the floors", "dominates", "conflict", "uncertainty balancer's loss weights", "the floor's"):
        assert words in note
    for picture in ("losses", "conflict", "predictions"):
        assert imread(out / f"pictures/{picture}.png").std() > 0.05
    assert any((out / "tensorboard").iterdir())
    printed = capsys.readouterr().out
    assert "epoch 8/8" in printed
    assert "normal/median_angle_deg" in printed


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "sum", "--tasks", "depth"),
        ("--method", "mean", "--form", "detach", "--balancer", "gradnorm", "--freeze-encoder-epochs", "1", "--schedule", "step"),
        (
            "--method",
            "pcgrad",
            "--amp",
            "bf16",
            "--clip-norm",
            "1",
            "--schedule",
            "constant",
            "--deterministic",
            "--log-every",
            "2",
        ),
    ],
)
def test_every_way_of_training_runs_to_its_end(tmp_path: Path, options: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    assert _train(tmp_path / "run", "--epochs", "2", *options) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert np.isfinite([value for value in metrics.values() if value is not None]).all()
    assert metrics["val/depth/absolute_error_m"] > 0


def test_a_frozen_encoder_does_not_move_in_the_first_epochs(tmp_path: Path) -> None:
    parser = train.build_parser()
    options = ["--out", str(tmp_path), *TINY, "--freeze-encoder-epochs", "1"]
    problem = NYUv2Problem(parser.parse_args(options))
    for epoch, moves in ((0, False), (1, True)):
        before = {name: value.clone() for name, value in problem.model.trunk.encoder.state_dict().items()}
        problem.model.train()
        problem.start_epoch(epoch)
        optimizer = torch.optim.SGD(problem.model.parameter_groups(0.1, 0.1), lr=0.1)
        batch = {name: value[None].repeat(2, 1, 1, 1) if value.dim() == 3 else value[None].repeat(2, 1, 1)
                 for name, value in problem.train_data[0].items()}  # fmt: skip
        loss = problem.loss("depth", problem.represent(batch), batch)
        assert loss is not None
        loss.backward()
        optimizer.step()
        after = problem.model.trunk.encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in after) != moves


RESUMED = ("--epochs", "5", "--balancer", "gradnorm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert _train(out, *RESUMED) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_resumes_to_the_numbers_of_an_uninterrupted_one(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    out = tmp_path / "parts"
    process = _start_process(out, *RESUMED)
    _wait_for_checkpoint(process, out)
    process.send_signal(number)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), printed
    assert number == signal.SIGKILL or "--resume" in printed
    assert 4 <= load_state(out / "checkpoints/last")["step"] < 20
    assert not (out / "metrics.json").exists()
    assert _train(out, "--resume") == 0
    _same_run(out, whole)


def test_errors_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(tmp_path / "run", "--data", str(tmp_path / "nowhere")) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert _train(tmp_path / "run", "--device", "cuda:99") == 1
    assert "--device cuda:99: not usable here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    assert _train(tmp_path / "full") == 1
    assert "not empty" in capsys.readouterr().err
    assert _train(tmp_path / "missing", "--resume") == 1
    assert "no run to resume" in capsys.readouterr().err


def test_a_corrupt_checkpoint_and_changed_arguments_stop_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(out, "--epochs", "1") == 0
    assert _train(out, "--epochs", "1", "--resume", "--seed", "1") == 1
    assert "--seed was 0, now 1" in capsys.readouterr().err
    path = next((out / "checkpoints/last").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-100])
    assert _train(out, "--resume") == 1
    assert "last: the checkpoint is corrupt (checksum of '__0_0.distcp' does not match)" in capsys.readouterr().err


def test_palettes_tell_classes_apart() -> None:
    for classes in (13, 40):
        colors = palette(classes)
        assert colors.shape == (classes, 3)
        distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + np.eye(classes)
        assert distances.min() > 0.05
        assert np.linalg.norm(colors, axis=-1).min() > 0.2  # none is mistaken for the black of unlabelled pixels


@pytest.mark.slow
@pytest.mark.skipif("GRADSURGERY_DATA" not in os.environ, reason="GRADSURGERY_DATA is not set: no real NYUv2 images here")
def test_real_images_are_learned(tmp_path: Path) -> None:
    data = Path(os.environ["GRADSURGERY_DATA"]) / "nyuv2-sample"
    options = ["--data", str(data), "--size", "60", "80", "--epochs", "6", "--channels", "32", "--device", "cpu"]
    assert train.main(["--out", str(tmp_path / "run"), *options]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["val/segmentation/pixel_accuracy"] > metrics["floor/segmentation/pixel_accuracy"]
    assert metrics["val/depth/absolute_error_m"] < metrics["floor/depth/absolute_error_m"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--backbone", "resnet50", "--freeze-stages", "1", "--depth-loss", "berhu", "--normal-loss", "l1"),
        ("--backbone", "swin_t", "--decoder", "queries", "--form", "detach", "--depth-loss", "silog"),
        ("--backbone", "vit_b_16", "--loss-weights", "depth=2", "normal=0.5"),
        ("--backbone", "segnet", "--deterministic"),
        ("--backbone", "mobilenetv2", "--decoder", "fpn"),
    ],
    ids=lambda options: options[1],
)
def test_every_backbone_trains_a_step(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Of ViT, a small one: a checkpoint of vit_b_16 takes a gigabyte."""
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    small = partial(VisionTransformer, image_size=64, patch_size=16, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32)
    vit = replace(BACKBONES["vit_b_16"], network=lambda weights: small())
    monkeypatch.setitem(builder.BACKBONES, "vit_b_16", vit)
    counts = ("--train-count", "2", "--val-count", "1", "--epochs", "1", "--channels", "8", "--size", "32", "64")
    assert _train(tmp_path / "run", *counts, "--tasks", "segmentation", "depth", "normal", *options) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert all(np.isfinite(metrics[f"loss/{task}"]) for task in ("segmentation", "depth", "normal"))


@pytest.mark.parametrize("text", ["depth", "depth=much", "depth=-1"])
def test_loss_weights_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit):
        _train(tmp_path / "run", "--loss-weights", text)
    assert "--loss-weights: expected" in capsys.readouterr().err
