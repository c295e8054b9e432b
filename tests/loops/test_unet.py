"""A task that begins half-way through training, and float16 with a scaler: one task's overflow skips the step, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from types import ModuleType

import pytest
import torch
from loops.separate_passes import Gradients, Watched, assert_same_gradients, recorded_steps, separate_passes
from loops.unet import after, before
from torch import Tensor, nn

import gradsurgery as gs

SCALE = 2.0**8
Batch = tuple[Tensor, dict[str, Tensor]]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(6, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.leave = nn.Sequential(nn.Conv2d(12, 6, 3, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        skip = self.enter(images)
        return self.leave(torch.cat([skip, self.up(self.down(skip))], 1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet()
        self.heads = nn.ModuleDict({"seg": nn.Conv2d(6, 3, 1), "depth": nn.Conv2d(6, 1, 1)})
        self.losses = nn.ModuleDict({"seg": Watched(nn.CrossEntropyLoss()), "depth": Watched(nn.MSELoss())})
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)

    def train_by(self, loop: ModuleType, loader: Iterable[Batch]) -> list[Gradients]:
        optimizer = torch.optim.Adam([*self.unet.parameters(), *self.heads.parameters()], lr=1e-2)
        with recorded_steps(self) as steps:
            loop.train(self.unet, self.heads, self.losses, loader, optimizer, self.scaler)
        return steps


def batch(*tasks: str) -> Batch:
    g = torch.Generator().manual_seed(4)
    images = torch.randn(2, 3, 8, 8, generator=g)
    labels = {"seg": torch.randint(3, (2, 8, 8), generator=g), "depth": 2 * images.mean(1, keepdim=True) + 1}
    return images, {task: labels[task] for task in tasks}


BOTH = ("seg", "depth")


@pytest.mark.parametrize("tasks", [("seg",), BOTH], ids="-".join)
def test_the_first_step_is_that_of_separate_passes(tasks: tuple[str, ...]) -> None:
    model = Model()
    expected = copy.deepcopy(model)
    (actual,) = model.train_by(after, [batch(*tasks)])
    images, labels = batch(*tasks)
    with torch.autocast("cpu", dtype=torch.float16):
        features = expected.unet(images)
        losses = {t: [expected.losses[t](expected.heads[t](features), labels[t])] if t in labels else [] for t in BOTH}
    fresh = gs.GradientAggregator("gradvac", tasks=BOTH)
    rounding = 2 * torch.finfo(torch.float16).eps  # of a combined gradient on its way through the network
    assert_same_gradients(actual, separate_passes(dict(expected.named_parameters()), losses, fresh, SCALE), rounding)
    assert (actual["heads.depth.weight"] is None) == ("depth" not in tasks)


def test_a_task_that_begins_later_is_operated_on_from_then(built: list[gs.GradientAggregator]) -> None:
    model = Model()
    steps = model.train_by(after, [batch("seg")] * 3 + [batch(*BOTH)] * 2)
    assert [step["heads.depth.weight"] is None for step in steps] == [True, True, True, False, False]
    (surgery,) = built
    assert surgery.tasks == BOTH
    assert [step.present for step in surgery.history] == [(True,)] * 3 + [(True, True)] * 2


def test_an_overflow_in_one_task_skips_the_step_alone(built: list[gs.GradientAggregator]) -> None:
    model = Model()
    seen: list[tuple[float, dict[str, Tensor], dict[str, object]]] = []

    def look() -> None:
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        memory = {name: v.clone() if isinstance(v, Tensor) else v for name, v in built[0].state_dict().items()}
        seen.append((model.scaler.get_scale(), parameters, memory))

    def loader() -> Iterator[Batch]:
        yield batch(*BOTH)
        yield batch(*BOTH)
        look()
        images, labels = batch(*BOTH)
        yield images, labels | {"depth": labels["depth"] * 1e7}  # the loss is finite, and its float16 gradient is not
        look()
        yield batch(*BOTH)

    steps = model.train_by(after, loader())
    assert len(steps) == 3, "one of four steps is skipped"
    (scale, parameters, memory), (halved, same, kept) = seen
    assert (scale, halved) == (SCALE, SCALE / 2)
    assert all(torch.equal(same[name], p) for name, p in parameters.items())
    assert any(isinstance(value, Tensor) for value in memory.values()), "GradVac remembers cosines"
    assert_only_the_step_counts(memory, kept)
    assert torch.tensor(model.losses["depth"].values).isfinite().all()
    assert [step.nonfinite for step in built[0].history] == [False, False, True, False]
    assert all(g is not None and g.isfinite().all() for g in steps[-1].values()), "the next step goes on"


def assert_only_the_step_counts(before: dict[str, object], after: dict[str, object]) -> None:
    """A state without and with one more step whose gradients were not finite: the count of steps alone may differ."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        if isinstance(value, Tensor):
            assert torch.equal(value, other), name
        else:
            assert other == {**value, "step": value["step"] + 1}


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
def test_it_learns(loop: ModuleType) -> None:
    model = Model()
    model.train_by(loop, [batch("seg")] * 15 + [batch(*BOTH)] * 25)
    assert {task: loss.fell(5) for task, loss in model.losses.items()} == {"seg": True, "depth": True}
    assert model.scaler.get_scale() == SCALE, "without an overflow"
