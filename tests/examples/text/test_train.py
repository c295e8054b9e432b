"""The trainer from its command line: it learns, masks, resumes to the same bytes, keeps data sets apart, refuses clearly."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.classification import MISSING
from harness.errors import RunError
from harness.log import read_log
from matplotlib.image import imread
from text import train
from text.data.dataset import collate
from text.data.sentences import write_reviews
from text.pictures import confusion, predictions
from text.problem import TextProblem

SMALL = ("--batch-size", "8", "--embedding", "8", "--width", "6", "--device", "cpu")
TINY = ("--train-count", "48", "--val-count", "16", *SMALL)


def _train(out: Path, *options: str) -> int:
    return train.main(["--out", str(out), *options])


def _problem(*options: str) -> TextProblem:
    return TextProblem(train.build_parser().parse_args(["--out", "unused", *options]))


def _written(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


SENTIMENT = (
    "text,sentiment",
    *(f"this is {word} {row},{label}" for row in range(8) for word, label in (("good", "+"), ("bad", "-"))),
)
TOPIC = ("text\ttopic", *(f"about {word} {row}\t{word}" for row in range(6) for word in ("soup", "film", "boats")))


@pytest.fixture
def apart(tmp_path: Path) -> tuple[str, ...]:
    """Options that name a data set for each task."""
    sentiment, topic = _written(tmp_path / "s.csv", *SENTIMENT), _written(tmp_path / "t.tsv", *TOPIC)
    return ("--sentiment", str(sentiment), "--topic", str(topic), *SMALL)


def test_training_lowers_the_losses_and_fills_the_run_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, *TINY, "--epochs", "10", "--lr", "2e-2", "--width", "12") == 0
    log = read_log(out / "log.csv")
    for task in ("sentiment", "topic"):
        losses = list(log[f"loss/{task}"].values())
        assert len(losses) == 60
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["val/topic/macro_f1"] > metrics["floor/topic/macro_f1"]
    note = (out / "note.md").read_text()
    assert "48 training and 16 validation texts; a vocabulary of" in note
    assert "## What is left out" in note
    for picture in ("losses", "conflict", "predictions"):
        assert imread(out / f"pictures/{picture}.png").std() > 0.05


@pytest.mark.parametrize(
    "options",
    [
        ("--tasks", "topic", "--method", "sum"),
        ("--form", "detach", "--balancer", "gradnorm", "--amp", "bf16"),
        ("--form", "parameters", "--method", "cagrad", "--workers", "1", "--deterministic"),
    ],
)
def test_every_way_of_training_runs_to_its_end(tmp_path: Path, options: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    assert _train(tmp_path / "run", *TINY, "--epochs", "1", *options) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert np.isfinite([value for value in metrics.values() if value is not None]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["split", "parameters"])
def test_a_stopped_run_resumes_to_the_same_bytes(resumes: Callable[..., None], form: str) -> None:
    resumes(_train, TextProblem, (*TINY, "--epochs", "3", "--form", form), call=8, step=8)


def test_files_with_missing_and_unknown_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_reviews("train", count=40, seed=0)
    rows = [f'"{text}",{sentiment or ""},{topic or ""}' for text, sentiment, topic
            in zip(table.texts, table.labels["sentiment"], table.labels["topic"], strict=True)]  # fmt: skip
    _written(tmp_path / "train.csv", "text,sentiment,topic", *rows)
    _written(tmp_path / "val.csv", "text,sentiment,topic", "the soup was good,positive,food", "what is this,odd,", "a film,,film")
    files = ("--train_csv", str(tmp_path / "train.csv"), "--val-csv", str(tmp_path / "val.csv"), *SMALL)
    assert _train(tmp_path / "run", *files, "--epochs", "1") == 0
    told = "1 validation labels of sentiment left out because training has no such class ('odd' 1×)"
    assert told in " ".join(capsys.readouterr().out.split())
    assert told in (tmp_path / "run/note.md").read_text()
    assert (
        "validation: of 3 texts, so many have no label that counts: sentiment 2, topic 1" in (tmp_path / "run/note.md").read_text()
    )

    problem, folder = _problem(*files), _problem("--data", str(tmp_path), *SMALL)
    assert problem.val_data.labels["sentiment"].tolist() == [2, MISSING, MISSING]
    assert all(torch.equal(problem.train_data.labels[task], folder.train_data.labels[task]) for task in problem.tasks)
    assert len(_problem("--data", str(tmp_path), *SMALL, "--train-count", "20").train_data) == 20


def test_a_task_without_a_label_in_the_batch_is_absent() -> None:
    problem = _problem(*TINY)
    batch = collate([problem.train_data[index] for index in range(4)])
    batch["topic"] = torch.full((4,), MISSING)
    batch["sentiment"] = torch.tensor([0, MISSING, MISSING, 1])
    features = problem.represent(batch)
    assert problem.loss("topic", features, batch) is None
    assert problem.loss("sentiment", features, batch) is not None
    problem.model.eval()
    assert {name.partition("/")[0] for name in problem.evaluate([batch])} == {"sentiment"}


def test_evaluation_and_pictures_agree_with_the_model_text_by_text() -> None:
    problem = _problem(*TINY)
    problem.model.eval()
    data = problem.val_data
    with torch.no_grad():
        answers = {
            task: [int(problem.model(sample[None], torch.tensor([len(sample)]))[task].argmax()) for sample in data.words]
            for task in problem.tasks
        }
        found = problem.evaluate([collate([data[index] for index in part]) for part in (range(5), range(5, 16))])
    for task in problem.tasks:
        known = [index for index in range(16) if data.labels[task][index] != MISSING]
        right = sum(answers[task][index] == data.labels[task][index] for index in known)
        assert found[f"{task}/accuracy"] == pytest.approx(right / len(known))
        drawn = predictions(data, problem.model)[task]
        assert drawn.tolist() == answers[task]
        matrix = confusion(data.labels[task], drawn, len(problem.classes[task]))
        assert (matrix.sum(), matrix.trace()) == (len(known), right)
    assert confusion(torch.tensor([0, 0, 1, MISSING]), torch.tensor([0, 1, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


def test_separate_data_sets_are_mixed_and_labelled_for_one_task_each(apart: tuple[str, ...]) -> None:
    problem = _problem(*apart, "--form", "parameters")
    assert problem.classes == {"sentiment": ("+", "-"), "topic": ("boats", "film", "soup")}
    for data, counts in ((problem.train_data, (13, 14)), (problem.val_data, (3, 4))):
        known = {task: data.labels[task] != MISSING for task in problem.tasks}
        assert tuple(int(mask.sum()) for mask in known.values()) == counts
        assert (known["sentiment"] ^ known["topic"]).all()
    batch = collate([problem.train_data[index] for index in (0, 26)])
    features = problem.represent(batch).detach().requires_grad_()
    gradients = []
    for task in problem.tasks:
        loss = problem.loss(task, features, batch)
        assert loss is not None
        gradients.append(torch.autograd.grad(loss, features)[0])
    assert (gradients[0] * gradients[1]).eq(0).all()  # why surgery at the representation is refused
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_separate_data_sets_are_trained_on_parameters(tmp_path: Path, apart: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    assert _train(out, *apart, "--form", "parameters", "--epochs", "12", "--lr", "3e-2", "--min-count", "1") == 0
    log = read_log(out / "log.csv")
    assert len(log["cosine/sentiment-topic"]) > 20
    assert any(value != 0 for value in log["cosine/sentiment-topic"].values())
    for task in ("sentiment", "topic"):
        losses = list(log[f"loss/{task}"].values())
        assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


@pytest.mark.parametrize("form", ["split", "detach"])
def test_surgery_at_the_representation_is_refused_for_separate_data_sets(apart: tuple[str, ...], form: str) -> None:
    with pytest.raises(RunError, match=f"--form {form}: expected --form parameters .*never see a conflict"):
        _problem(*apart, "--form", form)
    _problem(*apart[:2], *SMALL, "--form", form, "--tasks", "sentiment")  # a single task has nothing to conflict with


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "generated", "--train-csv", "a.csv"), "--data and --train-csv/--val-csv: expected one of them"),
        (("--data", "x", "--topic", "y", "--form", "parameters"), "--data and --sentiment/--topic: expected one of them"),
        (("--train-csv", "a.csv"), "--train-csv: expected --val-csv beside it"),
        (("--val-csv", "a.csv"), "--val-csv: expected --train-csv beside it"),
        (("--topic", "y", "--form", "parameters"), "--sentiment: expected a data set of its own"),
        (("--topic", "y", "--tasks", "sentiment"), "--sentiment: expected a data set of its own"),
        (("--sentiment", "y", "--topic", "z", "--tasks", "topic"), "--sentiment y: sentiment is not among --tasks topic"),
        (("--data", "nowhere"), "--data: expected a folder with train.csv and val.csv .*found nothing at nowhere"),
        (("--min-count", "1000"), "--min-count 1000: no word of generated reviews occurs so often"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(RunError, match=message):
        _problem(*TINY, *options)


def test_errors_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _written(tmp_path / "train.csv", "text,sentiment,topic", "a,b,c", "d,e")
    _written(tmp_path / "val.csv", "text,sentiment,topic", "a,b,c")
    assert _train(tmp_path / "run", "--data", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'train.csv'}, line 3: expected 3 cells" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert _train(tmp_path / "run", *TINY, "--tasks", "topic", "topic") == 1
    assert "tasks: expected different names, found ['topic', 'topic']" in capsys.readouterr().err
    for share in ("1", "-0.1", "nan"):
        with pytest.raises(SystemExit):
            _train(tmp_path / "run", "--dropout", share)
        assert "expected a share from 0 to below 1" in capsys.readouterr().err
