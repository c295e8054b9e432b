"""The Python in docs/loops.md runs, in order, in one session."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import gradsurgery as gs
from gradsurgery.integrations.lightning import SurgeryStatistics

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "loops.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_its_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) == 2
    trunk, heads = nn.Linear(4, 6), nn.ModuleDict({"seg": nn.Linear(6, 2), "depth": nn.Linear(6, 2)})
    names = {"L": L, "gs": gs, "torch": torch, "F": nn.functional, "SurgeryStatistics": SurgeryStatistics}
    exec(compile(SNIPPETS[0], "docs/loops.md, Lightning", "exec"), names)
    x, y = torch.randn(5, 4), {"seg": torch.randn(5, 2), "depth": torch.randn(5, 2)}
    before = trunk.weight.clone()
    names["trainer"].fit(names["Model"](trunk, heads), DataLoader([(x, y)] * 4, batch_size=None))
    assert not torch.equal(trunk.weight, before)
    logged = [path for path in tmp_path.rglob("*") if path.is_file() and b"surgery/weight/seg" in path.read_bytes()]
    assert logged, "the Trainer's log has the statistics"

    surgery, parameters = gs.GradientAggregator("pcgrad"), list(trunk.parameters())
    z = trunk(x)
    losses = {task: 100 * nn.functional.mse_loss(head(z), y[task]) for task, head in heads.items()}
    names |= {"surgery": surgery, "losses": losses, "trunk": trunk, "max_norm": 0.5}
    nn.Module.zero_grad(trunk)
    exec(compile(SNIPPETS[1], "docs/loops.md, clipping", "exec"), names)
    assert surgery.statistics().norm > 1
    assert torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item() == pytest.approx(0.5, rel=1e-4)
