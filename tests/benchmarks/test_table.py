"""The README's tables are the committed rows, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import table
from parameter_step import CONTENDERS
from results import FOLDER, Results, latest

ENVIRONMENT: dict[str, Any] = {
    "date": "2026-01-31",
    "device": "Some CPU",
    "kind": "cpu",
    "cores": 2,
    "threads": 2,
    "system": "Linux x86_64",
    "python": "3.12.0",
    "versions": {"torch": "2.10.0", "torchvision": None, "torchjd": "0.18.0", "gradsurgery": "0.1.0"},
    "commit": "0123456789ab",
    "build": {"cpu": True, "cuda": False, "cpu_capability": "avx2"},
    "quick": False,
    "others_share": 0.01,
}


def surgery(provider: str, p50: float, tasks: int = 4, numel: int = 1_000_000) -> dict[str, Any]:
    row = {"kind": "surgery", "provider": provider, "tasks": tasks, "numel": numel, "dtype": "float32", "samples": 9}
    return {**row, "p20": p50, "p50": p50, "p80": p50, "floor_gb_per_s": 18.0, "error": 1e-8, "conflicts": 0.5}


def solver(provider: str, p50: float, error: float, tasks: int = 3, method: str = "mgda") -> dict[str, Any]:
    row = {"kind": "solver", "method": method, "tasks": tasks, "provider": provider, "samples": 9, "error": error}
    return {**row, "p20": p50, "p50": p50, "p80": p50, **({"read_p50": 20e-6} if tasks <= 8 else {})}


def parameters(form: str, p50: float, extra_bytes: int, tasks: int = 3) -> list[dict[str, Any]]:
    point = {"form": form, "tasks": tasks, "batch": 16, "size": 96}
    step = {"kind": "parameter step", **point, "p20": p50, "p50": p50, "p80": p50, "samples": 9, "error": 1e-6, "conflicts": 0.5}
    return [step, {"kind": "parameter memory", **point, "extra_bytes": extra_bytes}]


def distance(form: str, method: str) -> dict[str, Any]:
    row = {"kind": "weights distance", "form": form, "method": method, "tasks": 3, "batch": 16, "size": 96, "steps": 48}
    return {**row, "weights_mean": 0.0123, "weights_max": 0.25, "cosine_mean": 0.99987, "cosine_min": 0.987}


ROWS: list[dict[str, Any]] = [
    surgery("gradsurgery", 2e-3),
    surgery("torchjd", 7e-3),
    surgery("explicit", 30e-3),
    {"kind": "left out", "provider": "gram", "tasks": 4, "numel": 1_000_000, "dtype": "float32", "reason": "a reason"},
    solver("gradsurgery", 5e-6, 2e-16),
    solver("torchjd", 100e-6, 3e-3),
    solver("gradsurgery", 9e-6, 4e-15, tasks=16),
    solver("torchjd", 3e-3, 0.2, tasks=16),
    solver("gradsurgery", 6e-6, 1e-16, method="cagrad"),
    solver("torchjd", 9e-3, 2e-5, method="cagrad"),
    {"kind": "read", "name": "torch.sum", "bytes": 4, "gb_per_s": 40.0},
    {"kind": "read", "name": "memchr", "bytes": 4, "gb_per_s": 50.0},
    {"kind": "read", "name": "gram", "tasks": 4, "numel": 10_000_000, "dtype": "float32", "bytes": 4, "gb_per_s": 45.0},
    {"kind": "step", "form": "plain", "batch": 8, "size": 64, "tasks": 3, "p50": 0.1},
    {"kind": "step", "form": "split", "batch": 8, "size": 64, "tasks": 3, "p50": 0.1025},
    {
        "kind": "memory",
        "provider": "gradsurgery",
        "tasks": 4,
        "numel": 1_000_000,
        "dtype": "float32",
        "extra_bytes": 4_000_000,
        "call_bytes": 0,
    },
    {"kind": "step memory", "form": "plain", "batch": 8, "size": 128, "tasks": 3, "extra_bytes": 400_000_000},
    *parameters("plain", 0.1, 100_000_000, tasks=1),
    *parameters("full", 0.101, 100_000_000, tasks=1),
    *(row for k, form in enumerate(CONTENDERS, start=1) for row in parameters(form, 0.1 * k, 90_000_000 + 10_000_000 * k)),
    distance("gram_on", "pcgrad"),
    distance("gram_on", "mgda"),
    distance("every", "mgda"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Results(tmp_path / "results" / "some.json", ENVIRONMENT, ROWS).write()
    return tmp_path / "results"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.BEGIN}\nstale\n{table.END}\nafter\n")
    return path


def test_written_rows_are_read_again(folder: Path) -> None:
    results = Results.read(folder / "some.json")
    assert results.rows == ROWS
    assert results.environment == ENVIRONMENT
    assert len((folder / "some.json").read_text().splitlines()) == len(ROWS) + 5  # a row a line


def test_table_stands_between_the_markers(folder: Path, readme: Path) -> None:
    assert table.main([str(readme), "--results", str(folder)]) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "stale" not in text
    assert "| float32 | 4 | 10⁶ | 2.00 ms | 7.00 ms (3.50×) | – | 30.0 ms (15.0×) | – | 18.0 |" in text
    assert (
        "**Some CPU, 2 cores** (2026-01-31, torch 2.10.0, torchjd 0.18.0, gradsurgery 0.1.0, avx2 kernels, commit 0123456789ab)"
        in text
    )
    assert "`gram` reads 45.0 GB/s (90%) at T = 4, N = 10⁷; the machine's fastest plain read is 50.0 GB/s (memchr)." in text
    assert "at T = 4, N = 10⁶, float32: gradsurgery 1e-08, TorchJD 1e-08, explicit, in place 1e-08." in text
    assert "|  | T = 3 | T = 16 |" in text
    assert "| `mgda` | 5.00 µs (20.0×, 3e-03) | 9.00 µs (333×, 2e-01) |" in text
    assert "| `cagrad` | 6.00 µs (1500×, 2e-05) | – |" in text
    assert "to 4e-15 at worst" in text
    assert "of the time in which `gram` reads T gradients of 10⁵ coordinates: 30% at T = 3 (`cagrad`)." in text
    assert "takes 100 ms with the summed loss; `split` 1.025× of that." in text
    assert "| 4 | 10⁶ | 4 MB | 4 MB, 0.0 MB | – | – | – |" in text
    assert "`plain` 400 MB" in text
    assert "| the sum, one backward pass | 100 ms | 100 ms |" in text
    assert "| gradsurgery | 101 ms (1.01×) | 300 ms (3.00×) |" in text
    assert "| gradsurgery | 0.0 MB | 20 MB |" in text
    assert "| TorchJD, default | – | 70 MB |" in text
    assert "of the time of TorchJD's fastest configuration, 0.38× at T = 3; of the time of one forward and T plain" in text
    assert "backward passes, 1.50× at T = 3." in text
    assert (
        'leanest configuration, 0.29× at T = 3; with `memory="low"` 0.43× at T = 3; of TorchJD\'s default, 0.29× at T = 3.' in text
    )
    assert "With `gram_on=` the last stage, in 48 steps of training with 3 tasks, the weight that differs most" in text
    assert "by 0.012 and 0.25 (`pcgrad`), 0.012 and 0.25 (`mgda`); the cosine" in text
    assert "on average and at least, 0.9999 and 0.9870, 0.9999 and 0.9870." in text
    assert "Preliminary" not in text
    assert table.main([str(readme), "--results", str(folder)]) == 0
    assert readme.read_text() == text


def test_check_sees_other_rows(folder: Path, readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(readme), "--results", str(folder), "--check"]
    stale = readme.read_text()
    assert table.main(arguments) == 1
    assert "run python benchmarks/table.py" in capsys.readouterr().err
    assert readme.read_text() == stale
    table.main(arguments[:-1])
    assert table.main(arguments) == 0
    Results(folder / "some.json", ENVIRONMENT, [surgery("gradsurgery", 2.1e-3), *ROWS[1:]]).write()
    assert table.main(arguments) == 1


@pytest.mark.parametrize("text", ["no markers", f"{table.END}\n{table.BEGIN}", f"{table.BEGIN}\n{table.BEGIN}\n{table.END}"])
def test_missing_markers(folder: Path, readme: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    readme.write_text(text)
    assert table.main([str(readme), "--results", str(folder)]) == 2
    assert table.BEGIN in capsys.readouterr().err
    assert readme.read_text() == text


def test_the_newest_rows_of_each_kind_and_device_count(folder: Path, readme: Path) -> None:
    steps = [*parameters("plain", 0.2, 1, tasks=1), *parameters("full", 0.5, 1, tasks=1)]
    newer = [row for row in steps if row["kind"] == "parameter step"]
    Results(folder / "a.json", {**ENVIRONMENT, "date": "2026-03-01"}, newer).write()
    Results(folder / "b.json", {**ENVIRONMENT, "cores": 64}, newer).write()
    Results(folder / "c.json", {**ENVIRONMENT, "device": "Some GPU", "kind": "cuda"}, newer).write()
    Results(folder / "old.json", {**ENVIRONMENT, "date": "2026-01-01"}, ROWS).write()  # has nothing of its own
    found = latest(folder)
    assert [results.path.name for results in found] == ["c.json", "some.json", "a.json", "b.json"]
    assert found[1].rows == [row for row in ROWS if row["kind"] != "parameter step"]
    assert found[2].rows == newer
    assert table.main([str(readme), "--results", str(folder)]) == 0
    older, own = readme.read_text().split("**Some CPU, 2 cores** ")[1:3]
    assert older.startswith("(2026-01-31")
    assert "| the sum, one backward pass |" not in older
    assert own.startswith("(2026-03-01")
    assert "| gradsurgery | 500 ms (2.50×) |" in own


def test_quick_results_are_refused(folder: Path, readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(folder / "some.json", {**ENVIRONMENT, "quick": True}, ROWS).write()
    assert table.main([str(readme), "--results", str(folder)]) == 2
    assert "--quick" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "said"), [(0.4, "40%"), (None, "an unknown share")])
def test_a_busy_machine_is_said(folder: Path, share: float | None, said: str) -> None:
    text = table.render(Results(folder, {**ENVIRONMENT, "others_share": share}, ROWS))
    assert f"*Preliminary: other processes took {said} of the CPUs' time meanwhile.*" in text


def test_no_compiled_kernels_is_said(folder: Path) -> None:
    build = {"cpu": False, "cuda": False, "cpu_capability": None}
    assert "pure-PyTorch reference" in table.render(Results(folder, {**ENVIRONMENT, "build": build}, ROWS))


@pytest.mark.parametrize(("value", "text"), [(5.204e-6, "5.20 µs"), (999e-6, "999 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s")])
def test_seconds(value: float, text: str) -> None:
    assert table.seconds(value) == text


@pytest.mark.parametrize(("numel", "text"), [(1_000, "10³"), (30_000_000, "3·10⁷"), (10_000_000_000, "10¹⁰")])
def test_powers(numel: int, text: str) -> None:
    assert table.power(numel) == text


def test_plot(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    from plot import draw

    path = draw(Results.read(folder / "some.json"))
    assert path == folder / "some.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results(path: Path) -> None:
    results = Results.read(path)
    assert results.environment["quick"] is False
    assert json.loads(path.read_text())["environment"]["commit"]
    assert table.render(results)
    for row in results.where("surgery"):
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
