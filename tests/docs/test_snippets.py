"""Every Python block of every page runs, in order, in one namespace a page; blocks in other languages are checked, too."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import snippets
import torch
import torch._functorch.config as functorch
import torch.compiler.config as compiler
import torch.distributed as dist
from snippets import ROOT, Block
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs

ELSEWHERE = {  # pages whose blocks a test of their own runs
    "README.md": "tests/test_readme.py",
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "docs/loops.md": "tests/loops/test_page.py",
}
PAGES = [page for page in snippets.pages() if snippets.blocks(page, "python") and page not in ELSEWHERE]
FROM_NOTHING = {"docs/quickstart.md"}
"""Pages that define all they use."""
SHOWN = {"bash", "diff", "python", "text"}
"""What a block may be, but on the pages that ``tests/test_contributing.py`` takes apart block by block."""
TAKEN_APART = {"CONTRIBUTING.md", "docs/custom_methods.md"}


@contextlib.contextmanager
def one_process() -> Iterator[dict[str, Any]]:
    """A job of one process, and a model that is wrapped in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        names = snippets.surroundings()
        model = nn.ModuleDict({"trunk": names["trunk"], "seg": names["seg_head"], "depth": names["depth_head"]})
        z = names["trunk"](names["x"])
        names["model"] = DistributedDataParallel(model)
        names["losses"] = {
            "seg": names["ce"](names["seg_head"](z), names["y_seg"]),
            "depth": names["l1"](names["depth_head"](z), names["y_depth"]),
        }
        yield names
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def settings_of_the_compiler() -> Iterator[dict[str, Any]]:
    """A page sets some."""
    with functorch.patch(donated_buffer=functorch.donated_buffer), compiler.patch(cache_key_tag=compiler.cache_key_tag):
        yield snippets.surroundings()
    torch._dynamo.reset()


@contextlib.contextmanager
def loggers() -> Iterator[dict[str, Any]]:
    """Stand-ins for packages that a page logs to; both get every step's values."""
    got: dict[str, list[tuple[int, dict[str, float]]]] = {"wandb": [], "mlflow": []}
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.log = lambda values, step: got["wandb"].append((step, dict(values)))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: got["mlflow"].append((step, dict(values)))  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setitem(sys.modules, "mlflow", mlflow)
        yield snippets.surroundings()
    for rows in got.values():
        assert [step for step, _ in rows] == [0, 1, 2]
        assert {"loss/seg", "norm/depth", "weight/seg", "cosine/seg-depth", "norm"} <= rows[0][1].keys()
    for written in ("observed/log.csv", "observed/report/index.html", "layers/layers.csv"):
        assert Path("runs", written).is_file()


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[dict[str, Any]]]] = {
    "docs/compile.md": settings_of_the_compiler,
    "docs/distributed.md": one_process,
    "docs/monitor.md": loggers,
}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a run folder
    if page in FROM_NOTHING:
        snippets.run(page, {"__name__": "page"})
        return
    with SURROUNDINGS.get(page, lambda: contextlib.nullcontext(snippets.surroundings()))() as names:
        snippets.run(page, names)


def test_no_block_is_left_out() -> None:
    """What is not run here is run by a test that names the page."""
    with_blocks = {page for page in snippets.pages() if snippets.blocks(page, "python")}
    assert with_blocks == {*PAGES, *(page for page in ELSEWHERE if page in with_blocks)}
    for page, test in ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not name {page}"


@pytest.mark.parametrize("page", sorted({*snippets.pages()} - TAKEN_APART))
def test_every_block_says_what_it_is(page: str) -> None:
    assert [(block.language, block.line) for block in snippets.blocks(page) if block.language not in SHOWN] == []


def sides(block: Block) -> list[str]:
    """A diff before and after."""
    lines = block.text.splitlines()
    return ["\n".join(line[1:] for line in lines if not line.startswith(other)) for other in "+-"]


DIFFS = [block for page in snippets.pages() if page != "CONTRIBUTING.md" for block in snippets.blocks(page, "diff")]


@pytest.mark.parametrize("block", DIFFS, ids=lambda block: f"{block.page}:{block.line}")
def test_diffs_are_python_before_and_after(block: Block) -> None:
    """And what they import from here exists."""
    assert {line[:1] for line in block.text.splitlines()} <= {"+", "-", " ", ""}
    for side in sides(block):
        for node in ast.walk(ast.parse(side)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gradsurgery":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, each.name) for each in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gs":
                assert hasattr(gs, node.attr)


def test_every_public_name_is_on_a_page() -> None:
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in snippets.pages() if not page.startswith("docs/api/"))
    assert [name for name in gs.__all__ if not re.search(rf"\b(?:gs|gradsurgery)\.{name}\b|`{name}\b", text)] == []


def test_a_block_that_fails_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n   ```python\n   a = 1\n   ```\n\n````text\n```python\n````\n\n```python\na / 0\n```\n")
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    assert [(block.language, block.line, block.text) for block in snippets.blocks("page.md")] == [
        ("python", 4, "a = 1\n"),
        ("text", 8, "```python\n"),
        ("python", 12, "a / 0\n"),
    ]
    with pytest.raises(ZeroDivisionError) as raised:
        snippets.run("page.md", {})
    assert raised.traceback[-1].lineno == 11  # counted from 0


def test_a_loop_that_does_not_train_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text("```python\noptimizer.step()\n```\n")
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="the loop trains"):
        snippets.run("page.md", snippets.surroundings())
