"""From a training with a planted fault, by way of gs.Monitor, to the sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.report import Finding, findings, read_run, write_report
from gradsurgery.report.rules.by_layer import layer_conflicts

STEPS = 200
FROM = 80  # the step in which the fault begins
BATCH = 32


class Trunk(nn.Module):
    """Two layers side by side, so that what a task wants of one does not touch the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.neck = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.stem(x), self.neck(x)


def _train(
    folder: Path, method: str, trunk: nn.Module, others: nn.Module, losses: Callable[[int, Tensor], dict[str, Tensor]]
) -> list[Finding]:
    """STEPS steps of surgery on the trunk's parameters, layer by layer, and what the report says of them."""
    surgery = gs.GradientAggregator(method, group_by="layer")
    optimizer = torch.optim.SGD([*trunk.parameters(), *others.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with gs.Monitor(surgery, folder, read_every=10):
        for step in range(STEPS):
            optimizer.zero_grad()
            surgery.backward(losses(step, torch.randn(BATCH, 6, generator=generator)), shared=trunk)
            optimizer.step()
    return findings(read_run(folder))


def _noise(step: int, size: float) -> Tensor:
    """The same for every task of a step, so that it makes gradients agree."""
    return size * torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_a_conflict_is_found_in_its_layer_pair_and_steps(tmp_path: Path, method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = Trunk(), nn.ModuleDict({task: nn.Linear(4, 1) for task in ("cat", "dog", "cow")})

    def losses(step: int, x: Tensor) -> dict[str, Tensor]:
        stem, neck = trunk(x)
        shared = (stem - x[:, :4] - _noise(step, 0.5)).square().mean()
        wanted = x[:, 2:] + _noise(step + STEPS, 0.5)
        turned = -1.0 if step >= FROM else 1.0
        return {
            "cat": shared + 3 * (neck - wanted).square().mean(),
            "dog": shared + 3 * (neck - turned * wanted).square().mean(),
            "cow": shared + heads["cow"](stem).square().mean(),
        }

    found = _train(tmp_path, method, trunk, heads, losses)
    assert "In conflict: neck in steps" in write_report(tmp_path).read_text(encoding="utf-8")
    run = read_run(tmp_path)
    assert run.layers is not None
    assert run.layers.names == ("stem", "neck")
    assert {pair: [(one.layer, one.first, one.last) for one in layer_conflicts(run, *pair)] for pair in run.pairs} == {
        ("cat", "dog"): [("neck", FROM, STEPS - 1)], ("cat", "cow"): [], ("dog", "cow"): [],
    }  # fmt: skip
    (pair,) = [one for one in found if one.kind == "conflict" and one.severity == "warning"]
    assert "cat and dog conflict" in pair.sentence
    assert f"in steps {FROM}–{STEPS - 1}" in pair.sentence
    (layer,) = [one for one in found if one.kind == "layers"]
    assert f"cat and dog conflict at neck (steps {FROM}–{STEPS - 1}" in layer.sentence
    assert "not at stem" in layer.sentence
    said = {"sum": "Surgery may help", "pcgrad": "The tasks conflict, and pcgrad acted on it"}
    assert f"{said[method]}: cat and dog pull the shared part apart" in found[0].sentence


def test_a_head_that_dies_is_found_with_its_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
    heads = nn.ModuleDict({task: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)) for task in ("cat", "dog")})
    targets = {"cat": lambda x: 2 + x[:, :1], "dog": lambda x: 2 + x[:, :1] + x[:, 1:2]}

    def losses(step: int, x: Tensor) -> dict[str, Tensor]:
        if step == FROM:
            with torch.no_grad():
                heads["dog"][0].bias.fill_(-100.0)  # type: ignore[index, union-attr, operator]
        features = trunk(x)
        return {task: (heads[task](features) - target(x)).square().mean() for task, target in targets.items()}

    found = _train(tmp_path, "sum", trunk, heads, losses)
    (collapse,) = [one for one in found if one.kind == "collapse"]
    assert f"gradient has gone to zero by step {FROM}" in collapse.sentence
    assert "dog" in collapse.sentence
    assert "cat" not in collapse.sentence
    assert (collapse.severity, found[0].severity) == ("warning", "warning")
    assert "Something is broken that no surgery repairs" in found[0].sentence


def test_a_healthy_training_needs_no_surgery(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
    heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in ("cat", "dog")})
    mixture = torch.randn(6, 1, generator=torch.Generator().manual_seed(2))

    def losses(step: int, x: Tensor) -> dict[str, Tensor]:
        features, noise = trunk(x), _noise(step, 0.3)[:, :1]
        return {
            "cat": (heads["cat"](features) - x @ mixture - noise).square().mean(),
            "dog": (heads["dog"](features) + x @ mixture - x[:, :1] + noise).square().mean(),
        }

    found = _train(tmp_path, "sum", trunk, heads, losses)
    assert found[0].severity == "ok", [one.sentence for one in found]
    assert "Surgery is not needed" in found[0].sentence
    assert not [one for one in found if one.severity == "warning"]
