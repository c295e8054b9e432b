"""What times a GPU runs on a CPU, too: checks, floors, rows, tables and plots are the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import device as bench
import device_step
import pytest
import torch
from cases import Case, gradients
from device import DevicePlan, copy_row, device_rows, prepare, replay_rows, timed
from device_clock import device_clock, replayed
from device_step import FORMS, StepPlan, Steps, check_forms, device_step_rows
from oracle import check
from parameter_step import RIVALS, small_trunk
from providers import provider
from providers.compiled import compiled_providers
from results import Results
from step import Batch
from timing import Call, Effort
from torch import Tensor, nn

CPU = torch.device("cpu")
ONCE = Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2))
EAGER = "aot_eager"  # inductor would compile for a minute
STEP = StepPlan(small_trunk, 3, Batch(2, 16), Batch(2, 16), ONCE)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("name", ["explicit_compiled", "gram_compiled"])
def test_what_is_compiled_is_right(name: str, tasks: int, dtype: str) -> None:
    grads = gradients(Case(tasks, 1021, dtype), CPU)
    compiled = compiled_providers(EAGER)[name]
    assert check(compiled, compiled.prepare(grads), grads) <= (5e-6 if dtype == "float32" else 2e-2)


def test_rows_of_everything() -> None:
    pytest.importorskip("torchjd")
    cached, large = Case(3, 2000), Case(2, 4000, "bfloat16")
    plan = DevicePlan(80_000, [large], [cached], [Case(3, 500)], ONCE, ONCE, EAGER, STEP)
    said: list[str] = []
    rows = device_rows(plan, CPU, said.append)
    names = {"gradsurgery", "explicit", "gram", "torchjd", "gram_compiled", "explicit_compiled"}
    for case, flushed in ((large, [True]), (cached, [True, False])):
        here = [r for r in rows if r["kind"] == "device" and r["numel"] == case.numel]
        assert sorted({r["flushed"] for r in here}, reverse=True) == flushed
        for state in flushed:
            assert {r["provider"] for r in here if r["what"] == "surgery" and r["flushed"] == state} == names
            assert {r["provider"] for r in here if r["what"] == "gram" and r["flushed"] == state} == {"gradsurgery", "gram"}
    replays = [r for r in rows if r["kind"] == "replay"]
    assert {r["provider"] for r in replays} == {"gradsurgery", "gram_compiled", "explicit_compiled"}
    assert {r["provider"] for r in rows if r["kind"] == "left out" and r.get("numel") == 500} == {"explicit", "gram", "torchjd"}
    assert {r["form"] for r in rows if r["kind"] == "device step"} >= {"plain", "split", "full"}
    assert any(line.startswith("replay, T=3") for line in said)


def test_a_library_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda name: None)
    reasons = {row["provider"]: row["reason"] for row in bench.left_out(Case(2, 100))}
    assert reasons == {"torchjd": "TorchJD is not installed"}
    assert ("surgery", "torchjd") not in prepare(Case(2, 100), EAGER, CPU)
    forms = Steps(CPU, Batch(2, 16), 3, small_trunk).calls()
    assert list(forms) == ["plain", "split", "full"]


def test_without_the_network_the_step_is_left_out() -> None:
    def build() -> nn.Sequential:
        raise ModuleNotFoundError("No module named 'torchvision'")

    (row,) = device_step_rows(replace(STEP, build=build), CPU)
    assert (row["kind"], row["reason"]) == ("left out", "No module named 'torchvision'")


def test_floors_are_bytes_over_the_copys_bandwidth() -> None:
    case = Case(3, 2000)
    calls = {key: call for key, call in prepare(case, EAGER, CPU).items() if key[1] == "gradsurgery"}
    surgery, gram = timed(case, calls, ONCE, CPU, copied=10.0, flushed=True)
    assert (surgery["floor_bytes"], surgery["on_chip_floor_bytes"]) == (7 * 2000 * 4, 4 * 2000 * 4)
    assert (gram["floor_bytes"], gram["on_chip_floor_bytes"]) == (3 * 2000 * 4, 3 * 2000 * 4)
    assert surgery["of_floor"] == pytest.approx(7 * 2000 * 4 / 10e9 / surgery["p50"])
    assert surgery["of_on_chip_floor"] == pytest.approx(4 / 7 * surgery["of_floor"])


def test_a_copy_reads_and_writes() -> None:
    row = copy_row(40_000, ONCE, CPU)
    assert row["bytes"] == 80_000
    assert row["gb_per_s"] == pytest.approx(80_000 / row["p50"] / 1e9)


def test_a_wrong_gram_matrix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(grads: Tensor) -> Tensor:
        return 1.001 * (grads.double() @ grads.double().T)

    monkeypatch.setattr(bench, "PRODUCTS", {"gradsurgery": scaled})
    with pytest.raises(AssertionError, match=r"gram by gradsurgery: off by 1\.0e-03 .*, where 3e-06 is allowed"):
        prepare(Case(2, 500), EAGER, CPU)


def test_a_wrong_replay_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_aggregator", lambda grads: lambda: grads.sum(0))
    with pytest.raises(AssertionError, match="gradsurgery: off by"):
        replay_rows(Case(3, 500), ONCE, EAGER, CPU)


def test_every_form_of_the_step_is_right() -> None:
    pytest.importorskip("torchjd")
    assert set(check_forms(Steps(CPU, Batch(2, 16), 3, small_trunk))) == set(FORMS)


def test_a_wrong_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_step, "FORMS", ("split",))

    def plain(self: Steps) -> Call:
        def run() -> None:
            self.release()
            torch.stack(self.losses()[1]).sum().backward()

        return run

    monkeypatch.setattr(Steps, "_split", plain)
    with pytest.raises(AssertionError, match="split: the gradient of the trunk is off by"):
        check_forms(Steps(CPU, Batch(2, 16), 3, small_trunk))


@pytest.mark.parametrize("fails", ["torchjd", "full"])
def test_a_rival_that_fails_is_left_out_and_a_form_of_ours_is_not(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    pytest.importorskip("torchjd")
    calls = Steps.calls
    monkeypatch.setattr(device_step, "FORMS", ("plain", fails))

    def some(self: Steps) -> dict[str, Call]:
        def run() -> None:
            raise RuntimeError("out of memory\nat length")

        return {"plain": calls(self)["plain"], fails: run}

    monkeypatch.setattr(device_step, "check_forms", lambda steps: {"plain": 0.0})
    monkeypatch.setattr(Steps, "calls", some)
    if fails not in RIVALS:
        with pytest.raises(RuntimeError, match="out of memory"):
            device_step_rows(STEP, CPU)
        return
    plain, left_out = device_step_rows(STEP, CPU)
    assert (plain["form"], plain["precision"]) == ("plain", "bfloat16")
    assert (left_out["provider"], left_out["reason"]) == (fails, "out of memory")


def test_the_plain_step_runs_under_autocast() -> None:
    steps = Steps(CPU, Batch(2, 16), 3, small_trunk, autocast=True)
    assert steps.losses()[0].dtype == torch.bfloat16
    assert Steps(CPU, Batch(2, 16), 3, small_trunk).losses()[0].dtype == torch.float32


def test_on_a_cpu_the_clock_is_the_hosts_and_nothing_is_captured() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    assert replayed(call, CPU) is call
    assert 0 < device_clock(CPU, flushed=True)(call, 5) < 1
    assert count == 5


def test_without_a_gpu_the_part_is_left_out_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    command = [
        sys.executable,
        str(ROOT / "benchmarks/run.py"),
        "--device",
        "cpu",
        "--only",
        "device",
        "--out",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "device: left out, as it tells of a GPU" in done.stdout
    assert Results.read(tmp_path / "r.json").rows == []


def device_row(what: str, provider: str, p50: float, flushed: bool = True, dtype: str = "float32") -> dict[str, Any]:
    T, N, b = 3, 1_000_000, 4 if dtype == "float32" else 2
    floor = (2 * T + 1 if what == "surgery" else T) * N * b
    point = {"kind": "device", "what": what, "provider": provider, "tasks": T, "numel": N, "dtype": dtype, "flushed": flushed}
    floors = {"floor_bytes": floor, "on_chip_floor_bytes": (T + 1) * N * b, "of_floor": floor / 2e12 / p50, "of_on_chip_floor": 0.5}
    return {**point, "p20": p50, "p50": p50, "p80": p50, "samples": 9, **floors, "error": 1e-7}


STEP_ROW = {"kind": "device step", "tasks": 3, "batch": 64, "size": 224, "precision": "bfloat16"}
ROWS = [
    {"kind": "copy", "bytes": 4, "p50": 1e-3, "gb_per_s": 2000.0},
    device_row("surgery", "gradsurgery", 20e-6),
    device_row("surgery", "gradsurgery", 10e-6, flushed=False),
    device_row("surgery", "torchjd", 100e-6),
    device_row("surgery", "gram_compiled", 50e-6),
    device_row("gram", "gradsurgery", 8e-6),
    device_row("surgery", "gradsurgery", 9e-6, dtype="bfloat16"),
    {"kind": "replay", "provider": "gradsurgery", "tasks": 3, "numel": 49_152, "dtype": "float32", "p50": 6e-6},
    {"kind": "replay", "provider": "gram_compiled", "tasks": 3, "numel": 49_152, "dtype": "float32", "p50": 30e-6},
    {**STEP_ROW, "form": "plain", "p50": 0.1, "extra_bytes": 400_000_000},
    {**STEP_ROW, "form": "split", "p50": 0.102, "extra_bytes": 410_000_000},
    {**STEP_ROW, "form": "torchjd_sequential", "p50": 0.3, "extra_bytes": 900_000_000},
]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    environment = {"device": "Some GPU", "kind": "cuda", "cores": 16, "date": "2026-01-31", "versions": {}, "commit": None}
    environment |= {"build": {"cpu": True, "cuda": True}, "quick": False, "others_share": 0.0}
    return Results(tmp_path / "some.json", environment, ROWS)


def test_table_of_a_gpu(results: Results) -> None:
    import table

    text = table.render(results)
    assert "(2T + 1) N coordinates at 2000 GB/s" in text
    assert "| float32 | 3 | 10⁶ | flushed | 20.0 µs | 70% | 75% | 100 µs (5.00×) | 50.0 µs (2.50×) |" in text
    assert "| float32 | 3 | 10⁶ | as it was | 10.0 µs | 140% | – | – | – |" in text
    assert "| the sum | 100 ms (1.00×) | 400 MB |" in text
    assert "| TorchJD, sequential | 300 ms (3.00×) | 900 MB |" in text
    assert "(T = 3, N = 49,152, float32) takes 6.00 µs; Gram, compiled 30.0 µs (5.00×)." in text


@pytest.mark.parametrize(("change", "drawn"), [(lambda rows: rows, True), (lambda rows: rows[1:], False)])
def test_roofline(results: Results, change: Callable[[list[Any]], list[Any]], drawn: bool) -> None:
    pytest.importorskip("matplotlib")
    from plot import draw, roofline

    path = roofline(replace(results, rows=change(results.rows)))
    assert (path is not None) == drawn
    assert draw(results) is None  # no rows by the host's clock
    if path is not None:
        assert path.name == "some-roofline.png"
        assert path.read_bytes().startswith(b"\x89PNG")


def test_flops() -> None:
    pytest.importorskip("matplotlib")
    from plot import flops

    assert flops({"what": "gram", "tasks": 3, "numel": 10}) == 2 * 6 * 10  # a product and a sum for each of the pairs
    assert flops({"what": "surgery", "tasks": 3, "numel": 10}) == (2 * 6 + 2 * 3) * 10
