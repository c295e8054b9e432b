"""Four heads, labels missing image by image, and tasks without any label in a batch."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from loops.separate_passes import Gradients, Watched, assert_same_gradients, recorded_steps, separate_passes
from loops.vit import after, before
from torch import Tensor, nn

import gradsurgery as gs

TASKS = ("kind", "age", "pose", "light")
OUTPUTS = {"kind": 4, "age": 1, "pose": 3, "light": 2}
Labels = dict[str, tuple[Tensor, Tensor]]


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.places = nn.Parameter(torch.randn(4, 16) / 4)
        self.layers = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.patches(images).flatten(2).transpose(1, 2) + self.places).mean(1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = ViT()
        self.heads = nn.ModuleDict({task: nn.Linear(16, out) for task, out in OUTPUTS.items()})
        ce, mse = nn.CrossEntropyLoss, nn.MSELoss
        kinds = {"kind": ce, "age": mse, "pose": mse, "light": ce}
        self.losses = nn.ModuleDict({task: Watched(kind()) for task, kind in kinds.items()})

    def train_by(self, loop: ModuleType, loader: list[tuple[Tensor, Labels]]) -> list[Gradients]:
        optimizer = torch.optim.AdamW([*self.vit.parameters(), *self.heads.parameters()], lr=5e-3)
        with recorded_steps(self) as steps:
            loop.train(self.vit, self.heads, self.losses, loader, optimizer)
        return steps


def batch(*absent: str) -> tuple[Tensor, Labels]:
    """Eight images, of which each task has labels for some, and those that are ``absent`` for none."""
    g = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=g)
    targets = {
        "kind": torch.randint(4, (8,), generator=g),
        "age": 3 * images.mean((1, 2, 3))[:, None] + 1,
        "pose": torch.randn(8, 3, generator=g),
        "light": torch.randint(2, (8,), generator=g),
    }
    return images, {
        task: (target, (torch.rand(8, generator=g) < 0.7) & torch.tensor(task not in absent)) for task, target in targets.items()
    }


@pytest.mark.parametrize("absent", [(), ("age",), ("kind", "pose"), ("kind", "age", "light")], ids="-".join)
def test_the_first_step_is_that_of_separate_passes(absent: tuple[str, ...], built: list[gs.GradientAggregator]) -> None:
    model = Model()
    expected = copy.deepcopy(model)
    (actual,) = model.train_by(after, [batch(*absent)])
    images, labels = batch(*absent)
    features = expected.vit(images)
    losses = {
        task: [] if task in absent else [expected.losses[task](expected.heads[task](features)[mask], target[mask])]
        for task, (target, mask) in labels.items()
    }
    fresh = gs.GradientAggregator("pcgrad", tasks=TASKS)
    assert_same_gradients(actual, separate_passes(dict(expected.named_parameters()), losses, fresh))
    for task in TASKS:
        assert all((actual[f"heads.{task}.{name}"] is None) == (task in absent) for name in ("weight", "bias"))
    assert [step.present for step in built[0].history] == [tuple(task not in absent for task in TASKS)]


def test_a_label_that_is_no_number_reaches_the_trunk_and_is_counted(built: list[gs.GradientAggregator]) -> None:
    model = Model()
    images, labels = batch()
    target, mask = labels["pose"]
    (actual,) = model.train_by(after, [(images, labels | {"pose": (target.index_fill(0, mask.nonzero()[0], torch.nan), mask)})])
    assert built[0].statistics().nonfinite
    for name, g in actual.items():
        assert g is not None
        assert bool(g.isnan().any()) == (not name.startswith("heads") or "pose" in name), name


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
def test_it_learns(loop: ModuleType) -> None:
    model = Model()
    model.train_by(loop, [batch(), batch("age"), batch("kind", "pose")] * 10)
    assert {task: loss.fell(3) for task, loss in model.losses.items()} == dict.fromkeys(TASKS, True)
