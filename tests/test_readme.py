"""The README: every Python snippet runs, in order, in one session; its tables and commands are what the code says."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch
import torch.compiler.config as compiler
from torch import nn

import gradsurgery as gs

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def surroundings() -> dict[str, Any]:
    """What a reader already has: a loader, a trunk, two heads, losses and an optimizer."""
    torch.manual_seed(0)
    trunk, seg_head, depth_head = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)
    parameters = [*trunk.parameters(), *seg_head.parameters(), *depth_head.parameters()]
    batches = [(torch.randn(5, 6), torch.randint(4, (5,)), torch.randn(5, 1)) for _ in range(3)]
    x, y_seg, y_depth = batches[0]
    return {
        "loader": batches,
        "trunk": trunk,
        "seg_head": seg_head,
        "depth_head": depth_head,
        "ce": nn.functional.cross_entropy,
        "l1": nn.functional.l1_loss,
        "optimizer": torch.optim.SGD(parameters, lr=0.1),
        "x": x,
        "y_seg": y_seg,
        "y_depth": y_depth,
    }


@pytest.fixture
def settings_of_the_compiler() -> Iterator[None]:
    """A snippet sets them."""
    with functorch.patch(donated_buffer=functorch.donated_buffer), compiler.patch(cache_key_tag=compiler.cache_key_tag):
        yield


@pytest.mark.usefixtures("settings_of_the_compiler")
def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a trainer there writes a run folder
    assert len(SNIPPETS) >= 7
    names = surroundings()
    for number, snippet in enumerate(SNIPPETS):
        before = names["trunk"].weight.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(snippet, f"README.md, snippet {number}", "exec"), names)
        if "optimizer.step" in snippet:
            assert not torch.equal(before, names["trunk"].weight), "the loop trains"


def readme_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_current() -> None:
    assert readme_tool().with_tables(TEXT) == TEXT
    assert all(f"| `{name}`" in TEXT for name in {**gs.methods(), **gs.balancers()})


@pytest.mark.parametrize("name", ["train", "test"])
def test_commands_are_found(name: str) -> None:
    assert readme_tool().command(name).startswith("pip install torch torchvision && pip install ")


def test_the_public_names_are_documented() -> None:
    assert all(name in TEXT for name in gs.__all__)
