"""The trainer from its command line: it learns, resumes to the same bytes, shows its model, refuses clearly."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.log import read_log
from matplotlib.image import imread
from multitoken import generate, train
from multitoken.pictures import gradient_cosines, passage_bits
from multitoken.problem import MultiTokenProblem

SMALL = ("--tokens", "3", "--context", "16", "--width", "16", "--layers", "1", "--heads", "2", "--batch-size", "8",
         "--device", "cpu")  # fmt: skip
TINY = (*SMALL, "--train-count", "40", "--val-count", "6")
TASKS = ("next1", "next2", "next3")


def _train(out: Path, *options: str) -> int:
    return train.main(["--out", str(out), *TINY, *options])


def _problem(*options: str) -> MultiTokenProblem:
    return MultiTokenProblem(train.build_parser().parse_args(["--out", "unused", *TINY, *options]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model's run folder."""
    out = tmp_path_factory.mktemp("multitoken") / "run"
    assert _train(out, "--epochs", "3", "--train-count", "160", "--lr", "1e-2") == 0
    return out


def test_training_lowers_the_losses_and_fills_the_run_folder(run: Path) -> None:
    log = read_log(run / "log.csv")
    for task in TASKS:
        losses = list(log[f"loss/{task}"].values())
        assert len(losses) == 60
        assert losses[0] == pytest.approx(math.log(256), rel=0.1)  # at first all bytes are as likely
        assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:4])
    assert len(log["cosine/next1-next3"]) == 60
    metrics = json.loads((run / "metrics.json").read_text())
    for task in TASKS:
        assert metrics[f"val/{task}/bits_per_byte"] < metrics[f"floor/{task}/bits_per_byte"]
    note = " ".join((run / "note.md").read_text().split())
    assert "160 training windows an epoch and 6 for validation, 16 bytes each" in note
    assert "the shares of the bytes in the training text (" in note
    assert "## Writing with the extra heads" in note
    for picture in ("losses", "conflict", "predictions", "cosines"):
        assert imread(run / f"pictures/{picture}.png").std() > 0.05
    prompt, _, written = (run / "pictures/sample.txt").read_bytes().partition(b"\n--- written by the model: ---\n")
    assert (len(prompt), len(written)) == (8, 401)


@pytest.mark.parametrize(
    "options",
    [
        ("--tokens", "1", "--method", "sum"),
        ("--form", "split", "--balancer", "uncertainty", "--amp", "bf16"),
        ("--form", "parameters", "--method", "cagrad", "--workers", "1"),
    ],
)
def test_every_way_of_training_runs_to_its_end(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert _train(tmp_path / "run", "--epochs", "1", *options) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert np.isfinite([value for value in metrics.values() if value is not None]).all()
    assert (tmp_path / "run/pictures/cosines.png").exists() == (options[0] != "--tokens")


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(resumes: Callable[..., None]) -> None:
    # Five steps, one batch of validation, two steps.
    resumes(_train, MultiTokenProblem, ("--epochs", "3", "--method", "cagrad"), call=8, step=7, files=("pictures/sample.txt",))


def test_evaluation_counts_every_byte_of_the_text_once_for_each_head(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(np.random.default_rng(0).integers(97, 105, 450, dtype=np.uint8)))
    problem = _problem("--data", str(tmp_path / "text"), "--val-count", "99")
    problem.model.eval()
    text = problem.val_text.long()  # 45 bytes: windows at 0, 16 and 32, of which the last is padded
    with torch.no_grad():
        found = problem.evaluate(problem.validation())
        for ahead, task in enumerate(TASKS, start=1):
            bits, hits = [], []
            for position in range(len(text) - ahead):
                start = position - position % 16
                logits = problem.model.heads[task](problem.model.trunk(text[None, start : position + 1]))[0, -1]
                bits.append(-float(logits.log_softmax(-1)[text[position + ahead]]) / math.log(2))
                hits.append(int(logits.argmax()) == text[position + ahead])
            assert found[f"{task}/bits_per_byte"] == pytest.approx(np.mean(bits), rel=1e-5)
            assert found[f"{task}/accuracy"] == pytest.approx(np.mean(hits))


def test_the_passage_shows_what_each_head_pays_for_its_byte() -> None:
    problem = _problem()
    problem.model.eval()
    bits, text = passage_bits(problem)
    assert text == bytes(problem.val_text[:16].tolist())
    with torch.no_grad():
        for row, task in enumerate(TASKS):
            assert np.isnan(bits[row, : row + 1]).all()
            logits = problem.model.heads[task](problem.model.trunk(problem.val_text[None, : 9 - row].long()))[0, -1]
            assert bits[row, 9] == pytest.approx(-float(logits.log_softmax(-1)[text[9]]) / math.log(2), rel=1e-5)


def test_cosines_are_those_of_the_gradients_that_surgery_sees() -> None:
    problem = _problem()
    batch = next(iter(problem.validation()))
    cosines = gradient_cosines(problem, batch)
    features = problem.represent(batch).detach().requires_grad_()
    gradients = [torch.autograd.grad(problem.loss(task, features, batch), features)[0].flatten() for task in TASKS]
    for row in range(3):
        for column in range(3):
            expected = torch.cosine_similarity(gradients[row], gradients[column], dim=0)
            assert cosines[row, column] == pytest.approx(float(expected), abs=1e-5)


def test_errors_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    for options, message in (
        (("--data", str(tmp_path / "nowhere")), "found nothing there"),
        (("--data", str(tmp_path)), "found a folder"),
        (("--data", str(tmp_path / "short")), "expected at least 190 bytes"),
        (("--width", "15"), "--width 15: expected a multiple of --heads 2"),
    ):
        assert _train(tmp_path / "run", *options) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_network() -> None:
    weights = []
    for drawn in (0, 5):
        torch.manual_seed(drawn)  # what was drawn before does not matter
        weights.append(_problem().model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_generate_goes_on_from_a_prompt_in_both_ways(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([str(run), "--prompt", "ro", "--count", "30", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("ro")
    assert len(captured.out.encode()) >= 2 + 30 + 1
    assert "byte by byte: 30 passes, 1.00 bytes a pass" in captured.err
    assert "drafted by 3 heads: " in captured.err
    assert "the texts are the same" in captured.err


def test_generate_says_what_a_run_lacks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "config.json").read_text())
    assert generate.main([str(tmp_path)]) == 1
    assert "expected the run folder of train.py, found no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert generate.main([str(tmp_path)]) == 1
    assert "expected a run that finished an epoch, found no checkpoints/best.pt" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.pt").write_bytes((run / "checkpoints/best.pt").read_bytes())
    for arguments in ({"width": 3}, {**config["arguments"], "width": 32}, None):
        (tmp_path / "config.json").write_text(json.dumps({"arguments": arguments}))
        assert generate.main([str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert "expected a run of multitoken/train.py; its model cannot be built" in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_real_text_is_learned(tmp_path: Path, sample_data: Path) -> None:
    text = sample_data / "text-sample/shakespeare.txt"
    options = ("--data", str(text), "--train-count", "320", "--val-count", "8", "--epochs", "1", "--context", "32", "--lr", "1e-2")
    assert _train(tmp_path / "run", *options) == 0
    for task in TASKS:
        losses = list(read_log(tmp_path / "run/log.csv")[f"loss/{task}"].values())
        assert np.mean(losses[-5:]) < 0.75 * losses[0]
    assert "shakespeare.txt" in (tmp_path / "run/note.md").read_text()
