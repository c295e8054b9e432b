"""The trainer under torchrun: two processes are as one, are killed or stopped, and go on as one or as two."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from harness.log import read_log
from harness.resume_point import find_state, load_state
from nyuv2 import train

TRAIN = Path(__file__).parents[3] / "examples/nyuv2/train.py"
OPTIONS = (
    "--size", "32", "48", "--train-count", "8", "--val-count", "3", "--batch-size", "4", "--channels", "8", "--device", "cpu",
    "--epochs", "3", "--tasks", "segmentation", "depth", "normal", "--balancer", "uncertainty", "--augment", "--double",
)  # fmt: skip


def _start(out: Path, *options: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(TRAIN), "--out", str(out)]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _same_numbers(one: Path, other: Path) -> None:
    logs = [read_log(run / "log.csv") for run in (one, other)]
    assert logs[0].keys() == logs[1].keys()
    for name, series in logs[0].items():
        assert list(series) == list(logs[1][name]), name
        assert list(logs[1][name].values()) == pytest.approx(list(series.values()), rel=1e-5, abs=1e-7), name
    states = [load_state(run / "checkpoints/last") for run in (one, other)]
    torch.testing.assert_close(states[1]["model"], states[0]["model"], rtol=1e-5, atol=1e-6)
    for file in ("metrics.json", "table.csv", "note.md", "pictures/predictions.png"):
        assert (other / file).is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(["--out", str(out), *OPTIONS]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGKILL, 2), (signal.SIGTERM, 1)])
def test_two_processes_that_are_stopped_go_on_to_the_numbers_of_one(
    tmp_path: Path, whole: Path, number: signal.Signals, processes: int
) -> None:
    """SIGKILL hits every process, SIGTERM torchrun alone, which passes it on."""
    out = tmp_path / "run"
    process = _start(out, *OPTIONS)
    deadline = time.monotonic() + 500
    while find_state(out / "checkpoints/last") is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGKILL:
        for pid in _workers(process.pid):
            os.kill(pid, number)
        process.kill()
    else:
        process.send_signal(number)
    printed = process.communicate(timeout=500)[0]
    assert process.returncode != 0
    if number == signal.SIGTERM:
        assert len(re.findall("Stopped by signal 15 after step", printed)) == 1, printed
    assert 2 <= load_state(out / "checkpoints/last")["step"] < 6
    assert not (out / "metrics.json").exists()
    if processes == 1:
        assert train.main(["--out", str(out), "--resume"]) == 0
    else:
        resumed = _start(out, "--resume")
        printed = resumed.communicate(timeout=500)[0]
        assert resumed.returncode == 0, printed
        assert printed.count("epoch 3/3") == 1  # one of them prints
    _same_numbers(whole, out)


def _workers(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    if not children.is_file():
        pytest.skip("no /proc here that tells the processes of torchrun")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.slow
def test_what_two_processes_cannot_do_is_one_line(tmp_path: Path) -> None:
    process = _start(tmp_path / "run", *OPTIONS, "--batch-size", "3")
    printed = process.communicate(timeout=500)[0]
    assert process.returncode == 1
    assert printed.count("error: --batch-size 3: expected a multiple of the 2 processes") == 1, printed
    assert not (tmp_path / "run").exists()
