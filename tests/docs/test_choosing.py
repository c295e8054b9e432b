"""docs/choosing.md: its table is the registry's, what it says of methods holds, and the tests that it names exist."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from scripts import tool
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.report.facts import LASTING, MODERATE, SURE
from gradsurgery.report.rules.dominance import LOPSIDED
from gradsurgery.report.rules.verdict import ENOUGH

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "choosing.md").read_text()
PROSE = " ".join(PAGE.split())  # whatever the lines are broken at
FEWEST = {"krum": 3, "trimmed_mean": 3}


def test_the_table_is_current() -> None:
    readme = tool("readme")
    assert readme.with_tables(PAGE, readme.CHOOSING) == PAGE
    assert all(f"| `{name}` |" in PAGE for name in gs.methods())


def named(before: str, after: str) -> set[str]:
    """The methods in a sentence."""
    return set(re.findall(r"`(\w+)`", PROSE.split(before)[1].split(after)[0]))


def opposed(tasks: int) -> Tensor:
    return torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])[:tasks]


def test_the_methods_that_tell_a_stationary_point() -> None:
    """Of two opposed gradients no direction improves both."""
    telling = set()
    for name, spec in gs.methods().items():
        if spec.family == "gram":
            surgery = gs.GradientAggregator(name)
            surgery.aggregate(opposed(FEWEST.get(name, 2)))
            status = surgery.statistics().status
            if status is not None and status.stationary:
                telling.add(name)
    assert named("`statistics().status.stationary` for ", ". The status") == telling


def test_the_methods_that_remember() -> None:
    remembering = {
        name
        for name, spec in gs.methods().items()
        if spec.build().initial_state() or spec.build().task_state(TaskGradients.of(list(opposed(FEWEST.get(name, 2)))))
    }
    assert named("**Memory of past steps:** ", " remember something") == remembering


def test_what_is_said_beyond_the_marks() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        G = torch.randn(2, 5, generator=g, dtype=torch.float64) * torch.randn(2, 1, generator=g).exp()
        for method, options in (("pcgrad", {}), ("cagrad", {"c": 1.0}), ("config", {}), ("imtlg", {})):
            out = gs.aggregate(G, method, **options)
            assert bool((G @ out >= -1e-9 * G.norm() * out.norm()).all()), method


BELIEFS = re.findall(r"^\| .* \| .* \| `(tests/\S+)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_there_are_beliefs() -> None:
    assert len(BELIEFS) >= 12


@pytest.mark.parametrize(("file", "name"), BELIEFS)
def test_the_test_of_a_belief_exists(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def cosines(seed: int) -> tuple[float, float]:
    """Of two tasks' gradients at the parameters of a linear trunk, and at its output."""
    torch.manual_seed(seed)
    trunk, heads = nn.Linear(2, 2, bias=False), [nn.Linear(2, 1, bias=False) for _ in range(2)]
    x, targets = torch.randn(4, 2), torch.randn(2, 4, 1)
    found = []
    for parameters in (True, False):
        surgery = gs.GradientAggregator("sum")
        views = (trunk(x),) * 2
        if not parameters:
            views = surgery.split(views[0], 2)
        losses = [(head(z) - y).square().mean() for head, z, y in zip(heads, views, targets, strict=True)]
        if parameters:
            surgery.backward(losses, shared=trunk)
        else:
            torch.stack(losses).sum().backward()
        found.append(float(surgery.statistics().cosines[0, 1]))
    return found[0], found[1]


def test_representation_and_parameters_may_disagree() -> None:
    pairs = [cosines(seed) for seed in range(200)]
    assert any(at_parameters < -0.2 and at_features > 0.2 for at_parameters, at_features in pairs)
    assert any(at_parameters > 0.2 and at_features < -0.2 for at_parameters, at_features in pairs)


def test_our_own_cosines() -> None:
    low, high = (float(x.replace("−", "-")) for x in re.findall(r"lie between (−?\d\.\d+) and \+(\d\.\d+)", PROSE)[0])
    means = [
        float(row["mean"])
        for table in (ROOT / "docs" / "results").glob("*/cosines.csv")
        for row in csv.DictReader(table.read_text().splitlines())
        if row["arm"] == "equal"
    ]
    assert len(means) > 4
    assert (round(min(means), 2), round(max(means), 2)) == (low, high)


def test_the_lines_that_the_report_draws() -> None:
    assert (MODERATE, LASTING, SURE, LOPSIDED, ENOUGH) == (-0.1, 0.1, 4.0, 4.0, 50)
    for said in (
        "averages −0.1 or less over a tenth of the recorded steps or more, four standard errors below zero",
        "the longest is four times the shortest",
        "of less than 50 steps",
    ):
        assert said in PROSE
