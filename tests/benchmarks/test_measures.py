"""What measures time, memory and bandwidth does so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bandwidth import read_rows
from cases import Case
from environment import Disturbance, slug
from memory import in_a_child, measure_from_here
from results import Results
from step import FORMS, Batch, Experiment, step_rows
from timing import Effort, interleave

CPU = torch.device("cpu")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow on a machine with other work
ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def test_contenders_take_turns_and_lead_in_turn() -> None:
    log: list[str] = []
    names = ["a", "b", "c"]
    calls = {name: lambda name=name: log.append(name) for name in names}
    times = interleave(calls, Effort(sample_s=0.0, budget_s=0.0, rounds=(3, 9)), CPU)
    assert "".join(log[-9:]) == "abcbcacab"
    assert {name: t.samples for name, t in times.items()} == dict.fromkeys(names, 3)


def test_short_calls_are_repeated_within_a_sample() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    times = interleave({"call": call}, Effort(sample_s=1e-3, budget_s=0.0, rounds=(1, 1)), CPU)["call"]
    assert count > 1000
    assert times.p20 == times.p50 == times.p80 < 1e-4


def test_seconds_are_a_calls() -> None:
    times = interleave({"sleep": lambda: time.sleep(2e-3)}, Effort(sample_s=4e-3, budget_s=0.0, rounds=(3, 3)), CPU)["sleep"]
    assert times.p20 >= 2e-3  # sleep never returns early


@linux
def test_memory_is_what_was_touched() -> None:
    size = 64 << 20
    measured = measure_from_here(CPU)
    block = torch.ones(size, dtype=torch.uint8)
    del block
    assert measured() == pytest.approx(size, rel=0.05)
    assert measure_from_here(CPU)() < size // 50


@linux
def test_a_call_of_ours_allocates_nothing_of_size_n() -> None:
    numel = 4_000_000
    row = in_a_child(["surgery", "cpu", "gradsurgery", "3", str(numel), "float32"])
    assert row["call_bytes"] < 4 * numel / 8
    assert row["extra_bytes"] == pytest.approx(4 * numel, rel=0.1)  # the result


@linux
def test_a_failing_child_says_why() -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'nobody'"):
        in_a_child(["surgery", "cpu", "nobody", "3", "10", "float32"])


def test_reads_are_bytes_over_time() -> None:
    rows = read_rows([Case(2, 5000)], Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)), CPU, probe_bytes=80_000)
    assert rows[-1]["name"] == "gram"
    assert rows[-1]["bytes"] == 2 * 5000 * 4
    assert {row["bytes"] for row in rows[:-1]} == {80_000}
    assert all(row["gb_per_s"] == pytest.approx(row["bytes"] / row["p50"] / 1e9) for row in rows)


def test_every_form_of_the_step_trains_the_model() -> None:
    pytest.importorskip("torchvision")
    for form in FORMS:
        experiment = Experiment(CPU, Batch(count=2, size=32), dense=False)
        modules = [experiment.trunk, *experiment.heads]
        before = [next(m.parameters()).clone() for m in modules]
        experiment.steps()[form]()
        assert all(not torch.equal(next(m.parameters()), b) for m, b in zip(modules, before, strict=True)), form
        assert all(p.grad is None for m in modules for p in m.parameters())


def test_step_rows() -> None:
    pytest.importorskip("torchvision")
    rows = step_rows(Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)), CPU, Batch(count=2, size=32))
    assert [row["form"] for row in rows] == list(FORMS)


def test_other_processes_are_noticed() -> None:
    disturbance = Disturbance()
    stop = time.monotonic() + 0.5
    while time.monotonic() < stop:  # our own work is no disturbance
        pass
    share = disturbance.share()
    assert share is None or 0 <= share <= 1


def test_files_are_named_after_device_and_day() -> None:
    cpu = {"device": "AMD EPYC 9B45 (x86)", "kind": "cpu", "cores": 2, "date": "2026-01-31"}
    assert slug(cpu) == "amd-epyc-9b45-x86-2-cores-2026-01-31"
    assert slug({**cpu, "kind": "cuda", "device": "NVIDIA H200"}) == "nvidia-h200-2026-01-31"


@pytest.mark.slow
def test_one_command_runs_everything(tmp_path: Path) -> None:
    for package in ("torchjd", "cvxpy", "ecos", "torchvision"):
        pytest.importorskip(package)
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), "--quick", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=ONE_THREAD)
    results = Results.read(out)
    assert results.environment["quick"] is True
    assert {row["kind"] for row in results.rows} == {
        "surgery",
        "solver",
        "read",
        "step",
        "memory",
        "step memory",
        "parameter step",
        "parameter memory",
        "weights distance",
        "copy",
        "device",
        "replay",
        "by sample",
        "device step",
        "left out",
    }


@pytest.mark.slow
def test_pytest_benchmark_runs(tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    pytest.importorskip("torchvision")
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-json={tmp_path / 'rows.json'}"]
    # pytest-xdist tells its processes what they are, and pytest-benchmark measures nothing in one of them.
    alone = {name: value for name, value in ONE_THREAD.items() if not name.startswith(("PYTEST_XDIST", "PYTEST_ADDOPTS"))}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "rows.json").is_file()
