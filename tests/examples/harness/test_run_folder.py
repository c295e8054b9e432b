"""A run folder is never overwritten, and a resumed run keeps its arguments."""

import argparse
import json
from pathlib import Path

import pytest
from harness.arguments import add_arguments, configuration, generated_or_path, open_run
from harness.errors import RunError
from harness.run_folder import RunFolder, read_json, write_json


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=2, default=[120, 160])
    add_arguments(parser, lr=0.5)
    return parser


def _started(out: Path, *options: str) -> None:
    arguments, folder = open_run(_parser(), ["--out", str(out), *options])
    folder.create(configuration(arguments))


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"not empty \(it holds thesis\.tex\)"):
        RunFolder(tmp_path, resume=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_written_before_create(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", resume=False)
    assert not folder.path.exists()
    folder.create({"arguments": {}})
    assert {entry.name for entry in folder.path.iterdir()} == {"config.json", "pictures", "checkpoints"}


def test_files_and_missing_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected a folder, found a file"):
        RunFolder(tmp_path / "file", resume=False)
    with pytest.raises(RunError, match=r"config\.json does not exist, so there is no run to resume"):
        RunFolder(tmp_path / "missing", resume=True)


def test_resume_takes_what_is_left_out_from_the_run(tmp_path: Path) -> None:
    _started(tmp_path / "run", "--epochs", "3", "--size", "64", "96", "--workers", "0", "--method-option", "reduction=mean")
    arguments, _ = open_run(_parser(), ["--out", str(tmp_path / "run"), "--resume", "--workers", "2"])
    assert (arguments.epochs, arguments.size, arguments.lr, arguments.workers) == (3, [64, 96], 0.5, 2)
    assert dict(arguments.method_option) == {"reduction": "mean"}


def test_resume_with_other_arguments_is_refused(tmp_path: Path) -> None:
    _started(tmp_path / "run", "--epochs", "3")
    with pytest.raises(RunError, match=r"--size was \[120, 160\], now \[64, 64\]; --epochs was 3, now 4"):
        open_run(_parser(), ["--out", str(tmp_path / "run"), "--resume", "--epochs", "4", "--size", "64", "64", "--lr", "0.5"])


def test_relative_paths_are_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parser() -> argparse.ArgumentParser:
        made = _parser()
        made.add_argument("--data", type=generated_or_path, default="generated")
        made.add_argument("--labels", type=Path)
        return made

    started, elsewhere = tmp_path / "started", tmp_path / "elsewhere"
    for place in (started, elsewhere):
        place.mkdir()
    monkeypatch.chdir(started)
    given = ["--data", "here/data", "--labels", "labels.csv"]
    arguments, folder = open_run(parser(), ["--out", "run", *given])
    folder.create(configuration(arguments))
    open_run(parser(), ["--out", "run", *given, "--resume"])
    monkeypatch.chdir(elsewhere)
    arguments, _ = open_run(parser(), ["--out", "../started/run", "--resume"])
    assert (arguments.data, arguments.labels) == (started / "here/data", started / "labels.csv")
    with pytest.raises(RunError, match=r"--labels was .*started/labels.csv', now "):
        open_run(parser(), ["--out", "../started/run", "--labels", "labels.csv", "--resume"])
    arguments, folder = open_run(parser(), ["--out", "generated"])
    folder.create(configuration(arguments))
    assert open_run(parser(), ["--out", "generated", "--resume"])[0].data == "generated"


def test_repeatable_options_may_be_repeated_on_resume(tmp_path: Path) -> None:
    options = ("--method", "cagrad", "--method-option", "c=0.4", "--method-option", "rescale=1", "--balancer", "uw",
               "--balancer-option", "initial_log_vars=(0.0, 1.0)")  # fmt: skip
    out = ("--out", str(tmp_path / "run"))
    _started(tmp_path / "run", *options)
    for given in ((), options):
        arguments, _ = open_run(_parser(), [*out, *given, "--resume"])
        assert dict(arguments.method_option) == {"c": 0.4, "rescale": 1}
        assert [name for name, _ in arguments.balancer_option] == ["initial_log_vars"]
    with pytest.raises(RunError, match=r"--method-option was \[\['c', 0.4\], .*now \[\('c', 0.5\)\]"):
        open_run(_parser(), [*out, "--resume", "--method-option", "c=0.5"])
    first, second = (_parser().parse_args([*out, *given]) for given in (options, ()))
    assert len(first.method_option) == 2
    assert second.method_option == []


def test_json_has_no_nan_and_bad_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": Path("x")}})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": "x"}}
    path.write_text('{"arguments": ')
    with pytest.raises(RunError, match=r"metrics\.json: not valid JSON"):
        read_json(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "expected at least 1, found 0"),
        (["--lr", "nan"], "expected at least 0, found nan"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--method-option", "c"], "expected NAME=VALUE, found 'c'"),
        (["--method", "none"], "invalid choice: 'none'"),
    ],
)
def test_bad_options_say_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        open_run(_parser(), ["--out", str(tmp_path / "run"), *options])
    assert message in capsys.readouterr().err
