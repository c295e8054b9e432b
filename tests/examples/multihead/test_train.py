"""The trainer from its command line: masks hold, it learns, resumes to the same bytes, keeps older flags, exports and predicts."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.checkpoint import save_checkpoint
from harness.errors import RunError
from harness.log import read_log
from harness.resume_point import load_state
from harness.training import Training
from matplotlib.image import imread
from multihead import export, predict, train
from multihead.data import TASKS
from multihead.floors import ConstantAnswer
from multihead.model import VIT_B_16, Shape, Trunk
from multihead.old_flags import translate
from multihead.pictures import plot_numbers, plot_predictions
from multihead.problem import ProductProblem
from multihead.targets import Vocabulary
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import to_pil_image

TINY = (
    "--size", "16", "--patch", "8", "--width", "16", "--depth", "1", "--attention-heads", "2", "--train-count", "48",
    "--val-count", "12", "--batch-size", "8", "--device", "cpu",
)  # fmt: skip


def _train(out: Path, *options: str) -> int:
    return train.main(["--out", str(out), *TINY, *options])


def _problem(out: Path, *options: str) -> ProductProblem:
    return ProductProblem(train.build_parser().parse_args(["--out", str(out), *TINY, *options]))


def _write_products(folder: Path, problem: ProductProblem) -> tuple[Path, Path]:
    """The generated products as files, as the trainer's users have them."""
    paths = []
    for split, data in (("train", problem.train_data), ("val", problem.val_data)):
        records: list[dict[str, Any]] = []
        for index, labels in enumerate(data.labels):
            name = f"{split}-{index}.png"
            to_pil_image(data[index]["image"]).save(folder / name)
            records.append({"image": name, **labels})
        if split == "val":
            records[0] = {**records[0], "company": "Nobody", "diameter": -1}
        (folder / f"{split}.json").write_text(json.dumps(records))
        paths.append(folder / f"{split}.json")
    return paths[0], paths[1]


@pytest.mark.parametrize("numbers", ["regression", "binned"])
def test_what_lies_under_a_mask_changes_nothing(tmp_path: Path, numbers: str) -> None:
    problem = _problem(tmp_path / "run", "--numbers", numbers)
    problem.model.eval()
    batch = default_collate([problem.train_data[index] for index in range(48)])
    planted = dict(batch)
    for task in TASKS:
        assert 0 < batch[f"{task}/known"].sum() < 48
        garbage = torch.full((48,), 10_000.0 if task in ("company", "model") else float("nan"))
        planted[task] = torch.where(batch[f"{task}/known"], batch[task], garbage)
    results = []
    for data in (batch, planted):
        problem.model.zero_grad()
        losses = [problem.loss(task, problem.represent(data), data) for task in TASKS]
        torch.stack([loss for loss in losses if loss is not None]).sum().backward()
        gradients = [parameter.grad.clone() for parameter in problem.model.parameters() if parameter.grad is not None]
        with torch.no_grad():
            results.append((losses, gradients, problem.evaluate([data])))
    (losses, gradients, metrics), (other_losses, other_gradients, other_metrics) = results
    assert all(one is not None and torch.equal(one, other) for one, other in zip(losses, other_losses, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(gradients, other_gradients, strict=True))
    assert metrics == other_metrics
    planted["model/known"] = torch.zeros(48, dtype=torch.bool)
    assert problem.loss("model", problem.represent(planted), planted) is None
    assert not any(name.startswith("model/") for name in problem.evaluate([planted]))


def test_metrics_are_means_over_the_known(tmp_path: Path) -> None:
    problem = _problem(tmp_path / "run")
    problem.model.eval()
    samples = [problem.val_data[index] for index in range(12)]
    with torch.no_grad():
        metrics = problem.evaluate([default_collate(samples[:5]), default_collate(samples[5:])])
        answer = problem.model.predict(default_collate(samples)["image"])
    right, errors = [], []
    for index, labels in enumerate(problem.val_data.labels):
        if labels["company"] is not None:
            right.append(problem.targets["company"].names[int(answer["company"][index].argmax())] == labels["company"])
        if labels["length"] is not None:
            errors.append(abs(float(answer["length"][index]) - float(labels["length"])))
    assert metrics["company/accuracy"] == pytest.approx(np.mean(right))
    assert metrics["length/absolute_error"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_floors_are_of_training_and_measured_on_validation(tmp_path: Path) -> None:
    problem = _problem(tmp_path / "run")
    columns = {
        task: [
            [labels[task] for labels in data.labels if labels[task] is not None] for data in (problem.train_data, problem.val_data)
        ]
        for task in TASKS
    }
    for task in ("company", "model"):
        train_labels, val_labels = columns[task]
        counts = Counter(train_labels)
        answer = min(counts, key=lambda name: (-counts[name], name))
        hits = val_labels.count(answer)
        occurring = {answer, *val_labels}
        assert problem.floors[f"{task}/accuracy"] == pytest.approx(hits / len(val_labels))
        assert problem.floors[f"{task}/macro_f1"] == pytest.approx(2 * hits / (len(val_labels) + hits) / len(occurring))
        surprise = [-np.log(counts[name] / len(train_labels)) for name in val_labels]
        assert problem.floors[f"{task}/loss"] == pytest.approx(np.mean(surprise), rel=1e-5)
        assert f"{task} {answer!r}" in problem.describe_floor()
    for task in ("diameter", "length"):
        train_labels, val_labels = columns[task]
        median = sorted(train_labels)[(len(train_labels) - 1) // 2]
        assert problem.floors[f"{task}/absolute_error"] == pytest.approx(np.abs(np.array(val_labels) - median).mean(), rel=1e-5)
        z = (np.array(val_labels) - np.mean(train_labels)) / np.std(train_labels)
        assert problem.floors[f"{task}/loss"] == pytest.approx((z**2).mean(), rel=1e-5)
    assert set(problem.floors) == {metric.name for metric in problem.metrics}


def test_the_floor_takes_the_majority_by_a_single_sample() -> None:
    class Labels:
        def __init__(self, counts: dict[int, int]) -> None:
            self.labels = torch.cat([torch.full((count,), float(kind)) for kind, count in counts.items()])

        def known_targets(self, task: str) -> torch.Tensor:
            return self.labels

    target = Vocabulary(tuple(f"{kind:04}" for kind in range(1000)))
    answer = ConstantAnswer(Labels({**dict.fromkeys(range(1, 999), 1), 0: 20_000, 999: 20_001}), {"model": target})  # type: ignore[arg-type]
    floors = answer.measure(Labels({999: 3, 0: 1}))  # type: ignore[arg-type]
    assert (floors["model/accuracy"], floors["model/top_5_accuracy"]) == (0.75, 1.0)
    assert answer.describe() == "the model '0999'"


def test_training_learns_fills_its_folder_and_its_export_predicts_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_json, val_json = _write_products(tmp_path, _problem(tmp_path / "unused"))
    out = tmp_path / "run"
    data = ("--train_json", str(train_json), "--val_json", str(val_json))
    assert _train(out, *data, "--epochs", "12", "--lr", "5e-3", "--use_uncertainty_weighting", "true",
                  "--initial_log_vars", "0,0,0,0.5") == 0  # fmt: skip
    log = read_log(out / "log.csv")
    for task in TASKS:
        losses = list(log[f"loss/{task}"].values())
        assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:6])
    assert log["variance/length"][1] == pytest.approx(np.exp(0.5), rel=0.05)
    note = (out / "note.md").read_text()
    told = re.findall(r"- (\w+) \((\w+)\): σ² ([\d.]+), effective weight ([\d.]+)\.", note)
    assert [task for task, *_ in told] == list(TASKS)
    for task, kind, variance, weight in told:
        assert kind == ("classification" if task in ("company", "model") else "regression")
        last = list(log[f"variance/{task}"].values())[-1]
        assert float(variance) == pytest.approx(last, abs=1e-4)
        assert float(weight) == pytest.approx((1 if kind == "classification" else 0.5) / last, abs=1e-4)
    for words in ("Learned variances", "How far each task has learned", "1 (1 × 'Nobody') of company"):
        assert words in note
    assert "never saw are left out: 1 (1 × 'Nobody') of company" in capsys.readouterr().out
    for picture in ("losses", "conflict", "predictions", "numbers"):
        assert imread(out / f"pictures/{picture}.png").std() > 0.05

    model_file = tmp_path / "model.pt"
    assert export.main(["--run", str(out), "--out", str(model_file), "--checkpoint", "last"]) == 0
    assert torch.load(model_file, weights_only=True)["model"]["_extra_state"]["targets"]["company"]["names"]
    capsys.readouterr()
    images = [str(tmp_path / f"val-{index}.png") for index in range(12)]
    (tmp_path / "torn.png").write_bytes((tmp_path / "val-0.png").read_bytes()[:-40])
    assert predict.main(["--model", str(model_file), "--json", "--batch-size", "5", *images[:3], str(tmp_path / "torn.png"),
                         *images[3:]]) == 1  # fmt: skip
    printed = capsys.readouterr()
    assert "torn.png: expected an image, found one that does not decode" in printed.err
    said = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["image"] for line in said] == images
    problem = _problem(tmp_path / "unused", *data)
    problem.model.load_state_dict(load_state(out / "checkpoints/last")["model"])
    problem.model.eval()
    with torch.no_grad():
        expected = problem.model.predict(default_collate([problem.val_data[index]["image"] for index in range(12)]))
    for index, line in enumerate(said):
        assert line["model"]["value"] == problem.targets["model"].names[int(expected["model"][index].argmax())]
        assert line["company"]["probability"] == pytest.approx(float(expected["company"][index].max()), rel=1e-4)
        assert line["diameter"]["value"] == pytest.approx(float(expected["diameter"][index]), rel=1e-4)
    assert predict.main(["--model", str(model_file), images[0]]) == 0
    assert "company " in capsys.readouterr().out


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--epochs", "3", "--augment", "--gradient_normalization", "true", "--use_uncertainty_weighting", "true",
               "--numbers", "binned", "--bins", "4")  # fmt: skip
    assert _train(tmp_path / "whole", *options) == 0
    save = Training.save
    with monkeypatch.context() as patch:

        def stop(training: Training) -> None:
            save(training)
            raise RunError("stopped here")

        patch.setattr(Training, "save", stop)
        assert _train(tmp_path / "parts", *options) == 1
    assert _train(tmp_path / "parts", "--resume") == 0
    for name in ("log.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_older_flags_become_the_common_ones() -> None:
    assert translate(["--train_json", "a", "--out", "o", "--use_uncertainty_weighting", "true", "--gradient_normalization", "true",
                      "--initial_log_vars", "0,0,-1,0"]) == [
        "--train_json", "a", "--out", "o", "--balancer", "uncertainty", "--balancer-option",
        "initial_log_vars=(0.0,0.0,-1.0,0.0,)", "--method", "dbmtl", "--method-option", "beta=0.0",
    ]  # fmt: skip
    old = ["--out", "o", "--use_uncertainty_weighting", "False", "--gradient_normalization", "false"]
    assert translate(old) == ["--out", "o", "--balancer", "none"]


def test_a_run_without_out_takes_the_first_free_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert translate([]) == ["--out", "runs/multihead"]
    (tmp_path / "runs/multihead").mkdir(parents=True)
    assert translate([]) == ["--out", "runs/multihead-2"]


@pytest.mark.parametrize(("options", "words"), [
    (["--use_uncertainty_weighting", "true", "--balancer", "gradnorm"], "--use_uncertainty_weighting true .* --balancer gradnorm"),
    (["--use_uncertainty_weighting", "false", "--balancer", "uw"], "--use_uncertainty_weighting false .* --balancer uw"),
    (["--gradient_normalization", "true", "--method", "pcgrad"], "--gradient_normalization true .* contradicts --method pcgrad"),
    (["--gradient_normalization", "true", "--method-option", "beta=0.9"], "contradicts --method-option beta=0.9"),
    (["--initial_log_vars", "0,0"], "--initial_log_vars '0,0': expected --use_uncertainty_weighting true"),
    (["--use_uncertainty_weighting", "true", "--initial_log_vars", "0,x"], "--initial_log_vars '0,x': expected one number a task"),
    (["--use_uncertainty_weighting", "perhaps"], "--use_uncertainty_weighting perhaps: expected true or false"),
    (["--balancer", "uw", "--balancer-option", "initial_log_vars=1", "--initial_log_vars", "0,0,0,0"], "contradicts"),
])  # fmt: skip
def test_contradicting_flags_are_refused_by_name(options: list[str], words: str) -> None:
    with pytest.raises(RunError, match=words):
        translate(["--out", "o", *options])


@pytest.mark.parametrize(("options", "words"), [
    (("--size", "20"), "--size 20: expected a multiple of --patch 8"),
    (("--size", "8", "--patch", "16"), "--size 8: expected a multiple of --patch 16; try 16"),
    (("--bins", "4"), "--bins 4: expected --numbers binned beside it"),
    (("--numbers", "binned", "--tasks", "model"), "--numbers binned: expected a number among --tasks model"),
    (("--pretrained",), "--backbone vit_b_16 only"),
    (("--backbone", "vit_b_16"), "--patch 8: --backbone vit_b_16 has 16"),
    (("--val_json", "x.json"), "--train-json: expected a file"),
    (("--balancer", "uw", "--initial_log_vars", "0,0"), "initial_log_vars: expected one number or 4"),
    (("--gradient_normalization", "true", "--method", "sum"), "contradicts"),
])  # fmt: skip
def test_errors_are_one_line_and_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert _train(tmp_path / "run", *options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_export_and_predict_refuse_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "m.pt")]) == 1
    assert "found no" in capsys.readouterr().err
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert predict.main(["--model", str(tmp_path / "m.pt"), str(tmp_path / "a.png")]) == 1
    assert "expected a file that export.py wrote" in capsys.readouterr().err
    other = tmp_path / "checkpoints/best.pt"
    other.parent.mkdir()
    save_checkpoint(other, {"model": {"heads.fine.weight": torch.zeros(2)}, "epoch": 1})
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "m.pt")]) == 1
    assert "best.pt: expected a model of the multi-head trainer, found another" in capsys.readouterr().err
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert predict.main(["--model", str(tmp_path / "m.pt"), str(tmp_path / "a.png")]) == 1
    assert "m.pt: the checkpoint is corrupt" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_cached_weights_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints/vit_b_16-c867db91.pth"
    cached.parent.mkdir(parents=True)
    shape = Shape(size=16, patch=8, width=16, depth=1, attention_heads=2, stem="patch")
    for number, content in enumerate((Payload(tmp_path / "ran"), {"weight": Payload(tmp_path / "ran")})):
        for save in (
            lambda content: cached.write_bytes(pickle.dumps(content, protocol=2)),
            lambda content: torch.save(content, cached),
        ):
            save(content)
            with pytest.raises(RunError, match=r"--pretrained: could not get .*vit_b_16-c867db91\.pth .*put a good copy"):
                Trunk(shape).load_imagenet(shape)
            assert not (tmp_path / "ran").exists(), number


def test_a_run_that_dies_before_its_first_checkpoint_starts_again_from_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(Trunk, "load_imagenet", lambda self, shape: loaded.append(shape))
    monkeypatch.setitem(VIT_B_16, "width", 12)
    monkeypatch.setitem(VIT_B_16, "depth", 1)
    options = ("--backbone", "vit_b_16", "--pretrained", "--size", "16", "--train-count", "8", "--val-count", "4", "--epochs", "1",
               "--device", "cpu")  # fmt: skip
    with monkeypatch.context() as patch:

        def die(training: Training) -> int:
            raise RunError("died here")

        patch.setattr(Training, "run", die)
        assert train.main(["--out", str(tmp_path / "run"), *options]) == 1
    assert not (tmp_path / "run/checkpoints/last").exists()
    assert train.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert len(loaded) == 2
    assert train.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert len(loaded) == 2  # the checkpoint holds the weights


def test_names_are_no_formulas(tmp_path: Path) -> None:
    problem = _problem(tmp_path / "run")
    names = tuple(f"$ {name}_{{ $" for name in problem.targets["company"].names)
    problem.model.targets["company"] = Vocabulary(names)
    problem.model.eval()
    problem.val_data.name = "$ x_{ $"
    plot_predictions(problem.model, problem.val_data, tmp_path / "predictions.png")
    plot_numbers(problem.model, problem.val_data, tmp_path / "numbers.png")
    assert imread(tmp_path / "predictions.png").std() > 0.05


@pytest.mark.slow
def test_real_products_are_learned(tmp_path: Path, sample_data: Path) -> None:
    data = sample_data / "multihead-sample"
    options = ("--train_json", str(data / "train.json"), "--val_json", str(data / "val.json"), "--train-count", "400",
               "--size", "32", "--epochs", "3", "--use_uncertainty_weighting", "true", "--gradient_normalization", "true",
               "--initial_log_vars", "0,0,0,0", "--device", "cpu", "--out", str(tmp_path / "run"))  # fmt: skip
    assert train.main(options) == 0
    losses = read_log(tmp_path / "run/log.csv")["loss/company"]
    values = list(losses.values())
    assert np.mean(values[-5:]) < np.mean(values[:5])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["val/model/top_5_accuracy"] >= 0
