"""The comparison's command: what it takes over from earlier ones, and signals, with stubs in the place of trainers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import compare
import pytest

STUB = """
import json, sys
from pathlib import Path
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["--method"] == "cagrad":
    import os, signal
    print("epoch 1", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
out = Path(arguments["--out"])
out.mkdir(parents=True)
(out / "config.json").write_text(json.dumps({"arguments": {"lr": arguments.get("--lr")}}))
(out / "log.csv").write_text("step,epoch,conflicts,score\\n1,0,,0.5\\n")
(out / "table.csv").write_text("metric,best,unit,primary,floor,value\\nkind/accuracy,1.0,,1,0.5,0.7\\n")
"""
PATIENT = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
def note(number, frame):
    with open(here / "signals", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
(here / "ready").touch()
for _ in range(600):
    time.sleep(0.1)
    if (here / "signals").exists():
        time.sleep(0.5)  # for a second signal
        (here / "checkpoint").touch()
        sys.exit(1)
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "nyuv2"
    folder.mkdir()
    (folder / "train.py").write_text(STUB)
    monkeypatch.setattr(compare, "EXAMPLES", tmp_path)
    return folder


def _command(out: Path, *options: str, arms: str = "equal", trainer: str = "nyuv2") -> list[str]:
    return [trainer, "--arms", arms, "--seeds", "0", "--out", str(out), "--", *options]


def test_runs_that_finished_with_other_options_are_not_shown_as_these(
    stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compare.main(_command(out, "--lr", "0.1")) == 0
    capsys.readouterr()
    assert compare.main(_command(out, "--lr", "0.2")) == 1
    shown = capsys.readouterr()
    assert "holds a comparison of nyuv2 -- --lr 0.1, now asked for nyuv2 -- --lr 0.2; repeat those options" in shown.err
    assert "| equal |" not in shown.out
    assert compare.main(_command(out, "--lr", "0.1", trainer="cifar10")) == 1
    assert compare.main(_command(out, "--device", "cpu", "--lr", "0.1", "--workers", "2", arms="pcgrad")) == 0, (
        "numbers are the same"
    )


def test_a_run_that_was_killed_is_told_as_such(stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(_command(tmp_path / "out", arms="cagrad")) == 1
    shown = capsys.readouterr()
    assert "error: cagrad, seed 0: killed by signal 9; its last line: epoch 1" in shown.err
    assert "nothing to compare" in shown.out


def test_single_runs_alone_are_no_comparison(stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(_command(tmp_path / "out", "--tasks", "kind", arms="single")) == 0
    assert "nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        (["--lr", "1", "--tasks", "a", "b", "--size", "3", "4"], ["a", "b"]),
        (["--tasks=a"], ["a"]),
        (["--tasks", "a", "b", "--tasks", "c"], ["c"]),
        (["--lr", "1"], []),
    ],
)
def test_tasks_are_read_as_the_trainer_reads_them(options: list[str], tasks: list[str]) -> None:
    assert compare.read_options(options) == (tasks, options)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_trainers_get_one_signal_and_the_time_for_their_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    stub = tmp_path / "nyuv2"
    stub.mkdir()
    (stub / "train.py").write_text(PATIENT)
    program = f"import pathlib, sys, compare; compare.EXAMPLES = pathlib.Path({str(tmp_path)!r}); sys.exit(compare.main())"
    examples = str(Path(compare.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *_command(tmp_path / "out")], env=os.environ | {"PYTHONPATH": examples},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        while not (stub / "ready").exists() and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, number)  # as a terminal does with Ctrl-C: all that is in the foreground
        assert b"Interrupted" in process.communicate()[1]
        assert process.returncode == 128 + number
        assert (stub / "signals").read_text() == "SIGTERM\n"
        assert (stub / "checkpoint").exists(), "compare.py waits for what it started"
    finally:
        process.kill()
