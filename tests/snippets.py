"""The blocks of Markdown pages, and what the reader of one has already."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its first line there, its language, and its text."""

    page: str
    line: int
    language: str
    text: str


def pages() -> list[str]:
    """Every page for readers, by its place in the repository."""
    return ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str | None = None, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, indented ones, too, all or those of a language."""
    if text is None:
        text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    opened: tuple[int, str, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"( *)(`{3,}|~{3,})\s*(\S*).*", line)
        if opened is None:
            if fence is not None:
                opened, lines = (number + 1, fence[1], fence[2], fence[3]), []
        elif fence is not None and fence[3] == "" and fence[2].startswith(opened[2]):
            found.append(Block(page, opened[0], opened[3], "".join(f"{each}\n" for each in lines)))
            opened = None
        else:
            lines.append(line.removeprefix(opened[1]))
    assert opened is None, f"{page}: the block at line {opened and opened[0]} has no end"
    return [block for block in found if language in (None, block.language)]


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


def run(page: str, names: dict[str, Any]) -> int:
    """Runs the Python of a page in order in one namespace, a warning being an error; returns how many blocks there were.

    Errors tell the page's line. Where ``trunk`` is there and a block calls ``optimizer.step``, the trunk has to move.
    """
    found = blocks(page, "python")
    for block in found:
        before = [p.detach().clone() for p in names["trunk"].parameters()] if "trunk" in names else []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec"), names)
        if before and "optimizer.step" in block.text:
            moved = [not torch.equal(old, new) for old, new in zip(before, names["trunk"].parameters(), strict=True)]
            assert any(moved), f"{page}:{block.line}: the loop trains"
    return len(found)
