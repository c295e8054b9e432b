"""The command ``gradsurgery``: in this process, and as a shell starts it."""

from __future__ import annotations

import csv
import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs
from gradsurgery import environment
from gradsurgery.commands import main
from gradsurgery.commands.info import as_text

ROOT = Path(__file__).resolve().parents[1]


def shell(*command: str, cwd: Path, tree: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A program with a source tree, this one if none is given; from a folder that holds no other."""
    surroundings = os.environ | {"PYTHONPATH": str(tree or Path(gs.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


def test_the_command_is_installed() -> None:
    assert '[project.scripts]\ngradsurgery = "gradsurgery.commands:main"\n' in (ROOT / "pyproject.toml").read_text()


# --- info ---------------------------------------------------------------------------------------------------------------------


def test_info_tells_what_a_bug_depends_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gradsurgery"]["version"] == gs.__version__
    assert found["gradsurgery"]["missing"] == gs.build_info()["missing"]
    assert found["torch"]["version"] == torch.__version__
    assert found["cuda"]["available"] == torch.cuda.is_available()
    assert found["cpu"]["name"] == environment.cpu_name()
    assert found["system"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert set(found["compilers"]) == {"c++", "nvcc"}
    assert "gloo" in found["distributed"]["backends"]
    assert found["packages"]["numpy"] is not None
    assert not any("error" in section for section in found.values()), found
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for section, facts in found.items():
        assert f"{section}\n" in text
        assert all(f"  {name} " in text for name in facts)


def test_info_names_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", "/homes/ada")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setenv("GRADSURGERY_DATA", "/homes/ada/data:/homes/adalbert:/scratch/ada/x:/scratch/ada-2:/homes/ada")
    assert main(["info", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["variables"]["GRADSURGERY_DATA"]
    assert shown == "~/data:/homes/adalbert:/scratch/<user>/x:/scratch/ada-2:~"


def test_info_shows_no_other_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "a-secret" not in shown
    assert "SOME_TOKEN" not in shown
    assert re.search(r"OMP_NUM_THREADS\s+3\b", shown)


@pytest.mark.parametrize("command", ["compiler -std=c++17", "'{folder}/compiler' -O2", "compiler"])
def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    program = tmp_path / "compiler"
    program.write_text("#!/bin/sh\necho a compiler 1.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CXX", command.format(folder=tmp_path))
    assert environment._compilers()["c++"] == "a compiler 1.0"


def test_what_is_broken_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("the driver is too old\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = environment.environment()
    assert found["cuda"] == {"error": "RuntimeError: the driver is too old"}
    assert found["torch"]["version"] == torch.__version__
    assert "the driver is too old" in as_text(found)


def test_programs_that_are_not_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    found = environment.environment()
    assert found["compilers"] == {"c++": None, "nvcc": None}
    fails = tmp_path / "c++"
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    assert environment.environment()["compilers"]["c++"] is None


def test_devices_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "A GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    found = environment.environment()
    assert found["cuda"]["devices"] == [{"name": "A GPU", "capability": "9.0", "memory_gib": 80.0}]
    assert "(name: A GPU; capability: 9.0; memory_gib: 80.0)" in as_text(found)


@pytest.mark.slow
def test_info_works_without_compiled_code_and_optional_packages(tmp_path: Path) -> None:
    package = tmp_path / "gradsurgery"
    source = Path(gs.__file__).parent
    for path in source.rglob("*.py"):
        target = package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (package / "_C.py").write_text("raise ImportError('undefined symbol: planted')")
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    ran = shell(sys.executable, "-m", "gradsurgery", "info", "--json", cwd=tmp_path, tree=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["gradsurgery"]
    assert not found["cpu"]
    assert found["missing"]["cpu"] == "undefined symbol: planted"
    assert found["compiled"] == []
    assert "Traceback" not in ran.stderr


# --- methods, help, pipes -------------------------------------------------------------------------------------------------------


def test_methods_are_those_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "family", "options", "source"]
    assert sorted(line.split()[0] for line in lines) == sorted(gs.methods())
    pcgrad = next(line for line in lines if line.startswith("pcgrad "))
    assert "gram" in pcgrad
    assert "order, " in pcgrad
    assert "2001.06782" in pcgrad
    assert max(map(len, [head, *lines])) <= 120


def test_the_help_of_methods_has_an_example_that_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["methods", "--help"])
    searched = re.search(r"gradsurgery methods \| grep (\w+)", capsys.readouterr().out)
    assert searched is not None
    main(["methods"])
    assert searched[1] in capsys.readouterr().out


def test_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "pcgrad"]) == 0
    shown = capsys.readouterr().out
    spec = gs.methods()["pcgrad"]
    assert shown.startswith(f"pcgrad (gram)\n{spec.summary}\n")
    assert all(f"\n  {name} = {default!r}\n" in shown for name, default in spec.options.items())
    assert all(f"\n  {name}: " in shown for name in spec.properties)
    assert shown.endswith(f"\npaper\n  {spec.paper}\n")


def test_every_method_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name, spec in gs.methods().items():
        assert main(["methods", name]) == 0
        assert spec.paper in capsys.readouterr().out


def test_a_misspelt_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "PCGrad"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: method: did you mean 'pcgrad'? Expected one of ")
    assert told.out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["report", "--help"], ["methods", "--help"], ["--version"]])
def test_help_has_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert ("Example" in shown and "gradsurgery " in shown) or shown == f"gradsurgery {gs.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["inform"], ["report"], ["info", "--xml"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: gradsurgery" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["methods", "info"])
def test_a_reader_that_goes_away(command: str, tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m gradsurgery {command} | head -n 1; echo "${{PIPESTATUS[0]}}"'
    ran = shell("bash", "-c", line, cwd=tmp_path)
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[-1] in ("0", "141")


# --- report -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which two tasks conflict all the time."""
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss/seg", "loss/depth", "norm/seg", "norm/depth", "norm", "cosine/seg-depth", "nonfinite"])
        for step in range(200):
            writer.writerow([step, 2.0 - step / 200, 1.0 - step / 400, 1.0, 1.1, 0.9, -0.5 + 0.01 * (step % 5), 0.0])
    return folder


@pytest.mark.slow
def test_report(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr().out.splitlines()
    page = Path(shown[-1])
    assert page == run / "report" / "index.html"
    assert page.is_file()
    assert any("seg and depth conflict strongly" in line for line in shown)
    out = run.parent / "elsewhere"
    assert main(["report", str(run), "--out", str(out), "--open"]) == 0
    assert opened == [(out / "index.html").resolve().as_uri()]


def test_report_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "nowhere" in told.err
    assert told.out == ""


@pytest.mark.slow
def test_report_without_matplotlib(run: Path) -> None:
    script = "import sys; sys.modules['matplotlib'] = None; from gradsurgery.commands import main; sys.exit(main(['report', '.']))"
    ran = shell(sys.executable, "-c", script, cwd=run)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert "pip install" in ran.stderr
    assert "gradsurgery[report]" in ran.stderr
