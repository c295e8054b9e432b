"""The build backend: what it builds, what it leaves out and says, and an installation without compiled code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gradsurgery as gs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gradsurgery_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_0_builds_nothing(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRADSURGERY_BUILD", "0")
    assert backend._extensions() == ([], {})
    assert backend.get_requires_for_build_wheel() == []
    assert "without compiled kernels" in capsys.readouterr().err


def test_no_compiler_builds_nothing_and_says_so(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend._extensions() == ([], {})
    assert "no C++ compiler was found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("home", "torch_cuda", "nvcc", "obstacle"),
    [
        (Path("/cuda"), None, "13.0", "torch is a build without CUDA"),
        (None, "13.2", "13.0", "no CUDA toolkit"),
        (Path("/cuda"), "12.8", "13.0", "nvcc is CUDA 13.0 and torch was built with CUDA 12.8"),
        (Path("/cuda"), "13.2", "13.0", None),
    ],
)
def test_cuda_obstacles(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, home: Path | None, torch_cuda: str | None, nvcc: str, obstacle: str | None
) -> None:
    monkeypatch.setattr(backend, "_nvcc_version", lambda _: nvcc)
    found = backend._cuda_obstacle(home, torch_cuda)
    assert found is None if obstacle is None else obstacle in found


def test_cuda_1_fails_where_cuda_cannot_be_built(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend._cuda_obstacle(backend._cuda_home(), torch.version.cuda) is None:
        monkeypatch.setattr(backend, "_cuda_home", lambda: None)
    monkeypatch.setenv("GRADSURGERY_CUDA", "1")
    with pytest.raises(SystemExit, match="GRADSURGERY_CUDA=1, but"):
        backend._extensions()


def test_an_installed_torch_is_used(backend: ModuleType) -> None:
    """Building asks for no torch of its own where this environment has one."""
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_editable() == []


def test_build_info_matches_what_is_installed() -> None:
    info = gs.build_info()
    package = Path(gs.__file__).parent
    assert info["cpu"] == any(package.glob("_C.*"))
    assert info["version"] == gs.__version__
    runs = {"cpu": info["cpu"], "cuda": info["cuda"], "host": info["cpu_capability"] is not None}
    assert set(info["missing"]) == {part for part, present in runs.items() if not present}


WITHOUT_KERNELS = """
import sys, warnings
# An editable installation of this package in the same environment would lend its compiled modules.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{getattr(f, '__module__', '')} {f!r}".lower()]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, gradsurgery as gs
    surgery = gs.GradientAggregator("pcgrad")
    for _ in range(3):
        x = torch.ones(4, requires_grad=True)
        a, b = surgery.split(x * 1, 2)
        (a.sum() - 2 * b[:3].sum()).backward()
        gs.aggregate(torch.randn(3, 50), "pcgrad")
ours = [w for w in caught if "gradsurgery" in str(w.message)]
assert len(ours) == 1 and "pure-PyTorch reference on cpu" in str(ours[0].message), [str(w.message) for w in caught]
info = gs.build_info()
assert not info["cpu"] and not info["cuda"] and info["missing"]["cpu"] == "not built", info
assert not gs.__file__.startswith({root!r}), gs.__file__
print("x.grad", x.grad.tolist())
"""


def run(arguments: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def test_installs_and_works_without_compiled_code(tmp_path: Path) -> None:
    """pip install with GRADSURGERY_BUILD=0 into an empty place; surgery there runs on the reference and warns once."""
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "gradsurgery", source / "gradsurgery", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "csrc", source / "csrc")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = ["pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(target), str(source)]
    environment = {**os.environ, "GRADSURGERY_BUILD": "0"}
    installed = subprocess.run(
        [sys.executable, "-m", *install], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (target / "gradsurgery" / "py.typed").exists()
    environment["PYTHONPATH"] = str(target)
    script = WITHOUT_KERNELS.replace("{root!r}", repr(str(ROOT)))
    ran = run(["-c", script], environment, tmp_path)
    assert ran.returncode == 0, ran.stderr
    # Rows (1, 1, 1, 1) and (-2, -2, -2, 0): K = [[4, -6], [-6, 12]], w = (1 + 6/4, 1 + 6/12).
    assert "x.grad [-0.5, -0.5, -0.5, 2.5]" in ran.stdout
