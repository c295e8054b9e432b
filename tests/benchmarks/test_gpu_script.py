"""What a machine with a GPU is asked for in one call goes on after a step that fails, and says which did."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None or sys.platform == "win32", reason="there is no bash")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, and with programs that note how they are called. What ``fails`` names, fails."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", tmp_path / "benchmarks" / "gpu.sh")
    programs = tmp_path / "programs"
    programs.mkdir()
    fake = (
        f'#!/bin/sh\necho "$(basename $0) $*" >> {tmp_path}/calls\n'
        f'case "$*" in *run.py*) echo rows > {tmp_path}/benchmarks/results/some-gpu.json;; esac\n'
        f'for word in $(cat {tmp_path}/fails 2> /dev/null); do case "$*" in *"$word"*) echo "no $word"; exit 1;; esac; done\n'
    )
    for name in ("python3", "compute-sanitizer", "nvcc"):
        (programs / name).write_text(fake)
        (programs / name).chmod(stat.S_IRWXU)
    return tmp_path


def run(checkout: Path, *arguments: str, fails: str = "") -> subprocess.CompletedProcess[str]:
    (checkout / "fails").write_text(fails)
    environment = {**os.environ, "PATH": f"{checkout / 'programs'}:{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    command = [str(BASH), str(checkout / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def calls(checkout: Path) -> str:
    return (checkout / "calls").read_text()


def test_all_steps_and_their_logs(checkout: Path) -> None:
    done = run(checkout, "--logs", str(checkout / "logs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("---")] == [
        *("build", "test", "memcheck", "racecheck", "synccheck", "bench", "plot")
    ]
    assert {path.name for path in (checkout / "logs").iterdir()} == {
        *(f"{step}.log" for step in ("build", "test", "memcheck", "racecheck", "synccheck", "bench", "plot")),
        "some-gpu.json",
    }
    for said in (
        "pip install --no-index",
        "tests -k cuda and not emulat",
        "--tool synccheck",
        "run.py --device cuda --only device",
    ):
        assert said in calls(checkout)


def test_a_failing_step_stops_none_of_the_others(checkout: Path) -> None:
    done = run(checkout, "build", "racecheck", "bench", fails="pip racecheck")
    assert done.returncode == 1
    assert done.stdout.endswith("failed: build racecheck\n")
    assert "--- bench passed" in done.stdout
    assert "no pip" in (checkout / "build" / "gpu-logs" / "build.log").read_text()


def test_what_is_missing_is_said(checkout: Path) -> None:
    done = run(checkout, "test", fails="hypothesis pytest")
    assert done.returncode == 1
    assert "missing: the module pytest\nmissing: the module hypothesis\n" in done.stdout
    assert "-k cuda" not in calls(checkout)


def test_named_steps_alone_are_run(checkout: Path) -> None:
    assert run(checkout, "sanitize").returncode == 0
    assert [line.split()[2] for line in calls(checkout).splitlines() if line.startswith("compute-sanitizer")] == [
        *("memcheck", "racecheck", "synccheck")
    ]
    assert "run.py" not in calls(checkout)


def test_an_unknown_step_is_refused_before_anything_runs(checkout: Path) -> None:
    done = run(checkout, "bench", "tests")
    assert done.returncode == 2
    assert "found 'tests'" in done.stderr
    assert not (checkout / "calls").exists()
