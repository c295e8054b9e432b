"""docs/migrating.md: loops with other libraries and the same loops with this one leave the same gradients.

TorchJD is compared where it is installed (the extra ``benchmark`` has it); what depends on it skips without.
"""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from loops.separate_passes import Gradients, recorded_steps
from scripts import tool
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

import gradsurgery as gs

MIGRATING = tool("loops").MIGRATING
PAGE = MIGRATING.path.read_text()
LOSSES = {"seg": mse_loss, "depth": l1_loss}


class Net(nn.Module):
    """A trunk and two heads of opposite signs, so that what helps one task harms the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.heads = nn.ModuleDict({task: nn.Linear(4, 3).double() for task in LOSSES})
        with torch.no_grad():
            self.heads["depth"].weight.copy_(-self.heads["seg"].weight)


def loader(steps: int = 3) -> list[tuple[Tensor, dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [(draw(7, 6), dict.fromkeys(LOSSES, 3 * draw(7, 3))) for _ in range(steps)]


def steps_of(train: Callable[..., None], net: nn.Module, *arguments: Any) -> list[Gradients]:
    with recorded_steps(net) as steps:
        train(*arguments)
    return steps


def with_heads(train: Callable[..., None]) -> list[Gradients]:
    net = Net()
    return steps_of(train, net, net.trunk, net.heads, LOSSES, loader(), torch.optim.SGD(net.parameters(), lr=0.1))


def conflicts() -> bool:
    """Whether the first step's gradients of the trunk conflict, so that surgery is not the sum."""
    net, (x, targets) = Net(), loader()[0]
    z, rows = net.trunk(x), []
    for task, head in net.heads.items():
        found = torch.autograd.grad(LOSSES[task](head(z), targets[task]), list(net.trunk.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return bool(rows[0] @ rows[1] < 0)


def assert_same(found: Sequence[Gradients], expected: Sequence[Gradients], rtol: float = 1e-12) -> None:
    assert len(found) == len(expected) > 0
    for step, others in zip(found, expected, strict=True):
        for name, g in others.items():
            actual = step[name]
            assert (actual is None) == (g is None), name
            if actual is not None and g is not None:
                assert float((actual - g).norm()) <= rtol * float(g.norm()), name


def pair(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    return tuple(importlib.import_module(f"docs.migrating.{name}.{when}").train for when in ("before", "after"))  # type: ignore[return-value]


# --- the page's diffs -------------------------------------------------------------------------------------------------------


def test_the_diffs_are_current() -> None:
    assert MIGRATING.with_diffs(PAGE) == PAGE


def test_every_pair_is_run() -> None:
    text = Path(__file__).read_text()
    assert all(f'pair("{name}")' in text for name in MIGRATING.names())


def test_by_hand() -> None:
    before, after = pair("by_hand")
    assert conflicts()
    assert_same(with_heads(after), with_heads(before))


def test_by_hand_in_an_order_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    G = torch.randn(5, 9, dtype=torch.float64)
    project = importlib.import_module("docs.migrating.by_hand.before").project
    drawn = project(list(G))
    monkeypatch.setattr(torch, "randperm", torch.arange)
    expected = project(list(G))
    assert not torch.allclose(drawn, expected), "the order matters"
    torch.testing.assert_close(gs.aggregate(G, "pcgrad", order="ascending"), expected)


class Repository:
    """What the PCGrad repository's class does, in a few lines of our own: flat vectors of all the optimizer's parameters.

    Args:
        literal: as it is; else on the shared parameters alone, with the heads' own gradients, as here.
    """

    literal = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.optimizer.step()

    def pc_backward(self, objectives: Sequence[Tensor]) -> None:
        own = [p for group in self.optimizer.param_groups for p in group["params"]]
        found = [torch.autograd.grad(objective, own, retain_graph=True, allow_unused=True) for objective in objectives]
        reached = torch.stack([self._flat([g if g is None else torch.ones_like(g) for g in row], own) for row in found]) > 0
        shared, rows = reached.all(0), torch.stack([self._flat(row, own) for row in found])
        result = torch.where(shared, 0.0, rows.sum(0))
        part = rows if self.literal else rows * shared
        projected = part.clone()
        for g in projected:
            for other in part[torch.tensor(random.sample(range(len(part)), len(part)))]:
                if g @ other < 0:
                    g.sub_(g @ other / other.square().sum() * other)
        result = torch.where(shared, projected.mean(0), projected.sum(0) if self.literal else result)
        for p, piece in zip(own, result.split([p.numel() for p in own]), strict=True):
            p.grad = piece.view_as(p)

    @staticmethod
    def _flat(row: Sequence[Tensor | None], own: Sequence[Tensor]) -> Tensor:
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, own, strict=True)])


class OnShared(Repository):
    literal = False


def with_repository(monkeypatch: pytest.MonkeyPatch, kind: type[Repository]) -> list[Gradients]:
    """The loop before, under the name by which it imports the class."""
    module = ModuleType("pcgrad")
    module.PCGrad = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pcgrad", module)
    monkeypatch.delitem(sys.modules, "docs.migrating.pcgrad.before", raising=False)
    net = Net()
    return steps_of(pair("pcgrad")[0], net, net.trunk, net.heads, LOSSES, loader())


def test_the_pcgrad_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = with_repository(monkeypatch, OnShared)
    net = Net()
    found = steps_of(pair("pcgrad")[1], net, net.trunk, net.heads, LOSSES, loader())
    assert conflicts()
    assert_same(found, expected)


def test_the_pcgrad_repository_projects_heads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says where numbers differ: inner products over all parameters, and heads changed by projections."""
    literal, ours = with_repository(monkeypatch, Repository)[0], with_repository(monkeypatch, OnShared)[0]
    for name in ("trunk.0.weight", "heads.seg.weight", "heads.depth.weight"):
        assert float((literal[name] - ours[name]).norm()) > 1e-3 * float(ours[name].norm()), name  # type: ignore[operator, union-attr]


def test_a_parameter_that_no_objective_reaches_has_no_gradient() -> None:
    used, spare = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = gs.PCGrad(torch.optim.SGD([*used.parameters(), *spare.parameters()], lr=0.1))
    z = used(torch.ones(3, 2))
    optimizer.pc_backward([z.mean(), -2 * z.mean()])
    assert spare.weight.grad is None
    other = Repository(torch.optim.SGD([*used.parameters(), *spare.parameters()], lr=0.1))
    z = used(torch.ones(3, 2))
    other.pc_backward([z.mean(), -2 * z.mean()])
    assert spare.weight.grad is not None
    assert not spare.weight.grad.any()


# --- TorchJD ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torchjd() -> Any:
    return pytest.importorskip("torchjd", reason='TorchJD is not installed: pip install "gradsurgery[benchmark]" compares with it')


TWIN = {"reg_eps": 1e-4, "norm_eps": 1e-4}


@pytest.mark.usefixtures("torchjd")
def test_torchjd_with_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its ridge, the same to rounding; without one, near, and no task gets worse, of which the ridge is no promise."""
    before, after = pair("torchjd_heads")
    assert conflicts()
    expected, exact = with_heads(before), with_heads(after)
    assert_same(exact[:1], expected[:1], rtol=0.02)
    build = gs.GradientAggregator
    monkeypatch.setattr(gs, "GradientAggregator", lambda *args, **options: build(*args, **options, **TWIN))
    assert_same(with_heads(after), expected)


@pytest.mark.usefixtures("torchjd")
def test_torchjd_with_a_whole_network() -> None:
    before, after = pair("torchjd_whole")
    batches = [(x, targets["seg"]) for x, targets in loader()]

    def run(train: Callable[..., None]) -> list[Gradients]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        objectives = [mse_loss, lambda z, y: l1_loss(z, -y), lambda z, _: z.square().mean()]
        return steps_of(train, net, net, objectives, batches, torch.optim.SGD(net.parameters(), lr=0.1))

    assert_same(run(after), run(before), rtol=1e-10)


def table(title: str) -> list[list[str]]:
    """The rows under the heading, cells without backquotes."""
    section = PAGE.split(f"### {title}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


AGGREGATORS, SCALARIZERS = table("Aggregators"), table("Scalarizers")


def relative_distances(theirs: str, ours: str, tasks: int) -> list[float]:
    import torchjd.aggregation

    names = {**vars(torchjd.aggregation), "torch": torch}
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        G = torch.randn(tasks, 20, dtype=torch.float64) * torch.logspace(-0.5, 0.5, tasks, dtype=torch.float64)[:, None]
        torch.manual_seed(seed)  # of draws that both make from torch's generator
        expected = eval(theirs, dict(names))(G)
        actual = eval(f"gs.GradientAggregator({ours})", {"gs": gs, "torch": torch}).aggregate(G)
        found.append(float((actual - expected).norm() / expected.norm()))
    return found


@pytest.mark.usefixtures("torchjd")
@pytest.mark.filterwarnings("ignore::UserWarning:cvxpy", "ignore::UserWarning:qpsolvers")
@pytest.mark.parametrize("row", AGGREGATORS, ids=[f"{row[0]}-{row[1]}" for row in AGGREGATORS])
def test_aggregators(row: list[str]) -> None:
    """What the table says of the difference, as the largest over random gradients; where it says "theirs", it is no rounding."""
    theirs, ours, difference, _ = row
    if difference == "random draws":
        return
    said, _, of = difference.partition(", T = ")
    distances = relative_distances(theirs, ours, int(of or 3))
    if said == "rounding":
        assert max(distances) <= 1e-12
    else:
        limit = float(said.removeprefix("up to "))
        assert limit / 100 < max(distances) <= limit  # the last digits are their solvers'


@pytest.mark.usefixtures("torchjd")
def test_every_aggregator_is_in_the_table() -> None:
    import torchjd.aggregation as other

    abstract = {"Aggregator", "Weighting", "WeightedAggregator", "GramianWeightedAggregator"}
    there = {name for name in other.__all__ if name not in abstract}
    bases = {name for name in there if not (name.endswith("Weighting") and name.removesuffix("Weighting") in there)}
    listed = {re.match(r"\w+", row[0])[0] for row in AGGREGATORS}  # type: ignore[index]
    assert listed >= bases - {"CRMOGMWeighting", "MoDoWeighting", "SDMGradWeighting"}
    assert all(f"`{name}" in PAGE for name in bases)


@pytest.mark.usefixtures("torchjd")
def test_every_scalarizer_is_in_the_table() -> None:
    import torchjd.scalarization as other

    listed = {re.match(r"\w+", row[0])[0] for row in SCALARIZERS}  # type: ignore[index]
    assert listed == set(other.__all__) - {"Scalarizer"}


@pytest.mark.usefixtures("torchjd")
@pytest.mark.parametrize("row", SCALARIZERS, ids=[row[0] for row in SCALARIZERS])
def test_scalarizers(row: list[str]) -> None:
    import torchjd.scalarization as other

    theirs, ours, difference = row
    if ours in ("–", "sum") or difference == "other draws":
        return
    losses = torch.tensor([0.5, 2.0, 1.5])
    expected = eval(theirs, {**vars(other), "torch": torch})(losses)
    actual = eval(ours, {"gs": gs, "tasks": ("a", "b", "c")})(list(losses))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0, check_dtype=False)


def test_every_name_here_exists() -> None:
    known: Mapping[str, Any] = {**gs.methods(), **gs.balancers()}
    for title in ("Aggregators", "Scalarizers", "Weightings"):
        rows = table(title)
        assert rows
        for row in rows:
            for code in re.findall(r"(?:gs\.\w+|^\"\w+\")", row[1]):
                assert code.strip('"') in known or hasattr(gs, code.removeprefix("gs.")), code


LIBMTL = [row for row in table("Weightings") if row[1].startswith('"')]


@pytest.mark.parametrize("row", LIBMTL, ids=[row[0] for row in LIBMTL])
def test_the_names_of_libmtl_build(row: list[str]) -> None:
    eval(f"gs.GradientAggregator({row[1]})", {"gs": gs})
