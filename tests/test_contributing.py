"""CONTRIBUTING.md, and docs/custom_methods.md: what they say of a new method works, block by block, in a copy of the package."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_emulator import compiler
from hypothesis import given
from hypothesis import strategies as st
from methods.test_properties import PROOFS, Run

import gradsurgery as gs

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/custom_methods.md")]


@dataclass(frozen=True)
class Block:
    """A fenced block: the section it stands in, the file it is of ("" for one to run), its language and its text."""

    section: str
    file: str
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for section in [part for text in TEXTS for part in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]]:
        title = section.splitlines()[0]
        for file, language, text in re.findall(r"(?:^`([^`\n]+)`\n\n)?^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            found.append(Block(title, file, language, text))
    return found


BLOCKS = blocks()
METHOD, SOLVER, PACKAGE = "In Python", "As a compiled solver", "In a package"


def of(section: str) -> list[Block]:
    return [block for block in BLOCKS if block.section == section]


def squeezed(line: str) -> str:
    return re.sub(r"\s+", " ", line).strip()


def patched(text: str, diff: str) -> str:
    """``text`` with the diff's lines put in and taken out, wherever the others stand, in their order."""
    lines, at = text.splitlines(), 0
    for line in diff.splitlines():
        kind, content = line[:1], line[1:]
        if kind == "+":
            lines.insert(at, content)
            at += 1
            continue
        places = [k for k in range(at, len(lines)) if squeezed(lines[k]) == squeezed(content)]
        assert places, f"the text has no line {content!r} after line {at}"
        at = places[0] + 1
        if kind == "-":
            at -= 1
            del lines[at]
    return "\n".join(lines) + "\n"


def write(root: Path, block: Block) -> None:
    target = root / block.file
    target.write_text(patched(target.read_text(), block.text) if block.language == "diff" else block.text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with the package, its sources, the README and the trainers, and the walk's first section applied."""
    for folder in ("gradsurgery", "csrc", "examples", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    for block in of(METHOD):
        if block.file:
            write(tmp_path, block)
    return tmp_path


def run(tree: Path, script: str) -> str:
    """What a script prints that imports the package of ``tree``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "examples")])}
    script = "import sys; sys.path.pop(0)\n" + script  # not the folder it is started in
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=tree)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_walk_has_its_blocks() -> None:
    assert [block.language for block in of(METHOD)] == ["python", "diff", "python"]
    assert [block.language for block in of(SOLVER)] == ["cpp", "diff", "python", "diff", "diff"]
    assert [block.language for block in of(PACKAGE)] == ["toml", "python", "python"]


def proof_of(declared: str) -> Callable[[st.DataObject], None]:
    def proof(data: st.DataObject) -> None:
        PROOFS[declared](Run("samelength"), data)

    return proof


@pytest.mark.usefixtures("own_registry")
def test_the_method_has_the_properties_it_declares() -> None:
    names: dict[str, object] = {}
    exec(compile(of(METHOD)[0].text, "CONTRIBUTING.md", "exec"), names)
    spec = gs.methods()["samelength"]
    assert spec.properties
    for declared in sorted(spec.properties):
        given(data=st.data())(proof_of(declared))()
    exec(compile(of(METHOD)[2].text, "CONTRIBUTING.md", "exec"), names)
    G, g = names["G"], names["g"]
    assert isinstance(G, torch.Tensor)
    assert isinstance(g, torch.Tensor)
    lengths = G.norm(dim=1, keepdim=True)
    torch.testing.assert_close(g, (G * (lengths.mean() / lengths).sqrt()).sum(0))
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], found 2"):
        gs.GradientAggregator("samelength", share=2)


SEES_IT = """
import argparse, importlib.util, pathlib, torch
import gradsurgery as gs
from harness.arguments import add_arguments
assert pathlib.Path(gs.__file__).parent == pathlib.Path("gradsurgery").resolve(), gs.__file__
G = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
assert gs.weights(gs.gram(G), "samelength").tolist() == [0.6, 0.0, 3.0]
assert torch.allclose(gs.aggregate(G, "samelength"), torch.tensor([1.8, 5.4]))
z = torch.zeros(2, requires_grad=True)
surgery = gs.GradientAggregator("samelength")
sum((view * row).sum() for view, row in zip(surgery.split(z * 1, 3), G)).backward()
assert torch.allclose(z.grad, torch.tensor([1.8, 5.4]))
parser = argparse.ArgumentParser()
add_arguments(parser)
assert parser.parse_args(["--method", "samelength", "--out", "x"]).method == "samelength"
spec = importlib.util.spec_from_file_location("readme", "tools/readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)
print(readme.with_tables(pathlib.Path("README.md").read_text()))
"""


def test_a_file_and_a_line_are_seen_everywhere(copy: Path) -> None:
    table = run(copy, SEES_IT)
    assert "| `samelength` | w_t = (m / ‖g_t‖)^share, where m is the mean length" in table
    assert "| `share=1.0` | 1 | order does not matter | an example |" in table


def test_the_solver_is_its_specification(copy: Path) -> None:
    for block in of(SOLVER):
        write(copy, block)
    source = copy / "walk.cpp"
    source.write_text("""
#include "csrc/weights/solve.h"
extern "C" int solve(const char* name, int tasks, const double* gram, const double* options, double* w, double* report) {
  const int index = gradsurgery::find_solver(name);
  if (index < 0) return 1;
  gradsurgery::Problem problem;
  problem.tasks = tasks, problem.gram = gram, problem.options = options, problem.w = w;
  gradsurgery::solve_groups(gradsurgery::kHostSolvers[index], problem, 1, 0, nullptr, report);
  return 0;
}
""")
    command = [compiler(), "-std=c++20", "-O1", "-Wall", "-Werror", "-fPIC", "-shared", f"-I{copy}", str(source)]
    compiled = subprocess.run([*command, "-o", str(copy / "walk.so")], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    solve = ctypes.CDLL(str(copy / "walk.so")).solve
    G = torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[1.0], [0.0], [1e-5], [30.0]])
    K = G @ G.T
    w, report, options = np.full(4, np.nan), np.full(4, np.nan), np.array([0.25])
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (K.numpy(), options, w, report)]
    assert solve(b"samelength", 4, *pointers) == 0
    assert report.tolist() == [1.0, 0.0, -1.0, 0.0]
    script = f"""
import torch
from gradsurgery.methods import build
from gradsurgery.methods.registry import NO_STEP
from gradsurgery.ops import solvers
method = build("samelength", share=0.25)
w, report = solvers.solve(torch.tensor({K.tolist()}, dtype=torch.float64), method.solver, method.options(4, NO_STEP))
print(*w.tolist())
"""
    expected = torch.tensor([float(word) for word in run(copy, script).split()], dtype=torch.float64)
    assert expected.count_nonzero() == 3
    torch.testing.assert_close(torch.from_numpy(w), expected, rtol=1e-14, atol=0)


def test_a_package_of_ones_own_is_found(tmp_path: Path) -> None:
    toml, module, _ = of(PACKAGE)
    group, name, value = re.fullmatch(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w.]+)"\n', toml.text).groups()  # type: ignore[union-attr]
    assert module.file == value.replace(".", "/") + ".py"
    info = tmp_path / "my_surgery-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-surgery\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (tmp_path / module.file).parent.mkdir()
    (tmp_path / "my_surgery" / "__init__.py").touch()
    (tmp_path / module.file).write_text(module.text)
    script = f"""
import sys
sys.path.append({str(ROOT)!r})
import torch, gradsurgery as gs
G = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
print(gs.aggregate(G, "loudest").tolist(), "loudest" in gs.methods(), gs.methods()["loudest"].summary)
"""
    assert run(tmp_path, script) == "[3.0, 4.0] True w_t = 1 for the longest gradient, 0 for the others.\n"
