"""Two feature maps, split as one dict, under Lightning's manual optimisation: surgery on the representation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from loops.detector import after, before
from loops.separate_passes import recorded_steps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import gradsurgery as gs

Batch = tuple[Tensor, Tensor, Tensor]


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = torch.tanh(self.stem(images))
        return {"fine": fine, "coarse": torch.tanh(self.down(fine))}


class Head(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Linear(6, out), nn.Linear(8, out)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return self.fine(maps["fine"].mean((2, 3))) + self.coarse(maps["coarse"].amax((2, 3)))


class Metrics(L.Callback):
    """What the module logs, batch by batch."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"boxes": [], "classes": []}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        for name, values in self.values.items():
            values.append(trainer.callback_metrics[name].item())


def parts() -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(2)
    return Pyramid(), Head(4), Head(3)


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=g), torch.randn(6, 4, generator=g), torch.randint(3, (6,), generator=g)


def fit(detector: L.LightningModule, steps: int, folder: Path) -> Metrics:
    metrics = Metrics()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=steps, callbacks=[metrics], accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(detector, DataLoader([batch()], batch_size=None))
    return metrics


def test_the_first_step_is_that_of_separate_passes(tmp_path: Path) -> None:
    detector = after.Detector(*parts())
    trunk, boxes, classes = copy.deepcopy((detector.trunk, detector.boxes, detector.classes))
    with recorded_steps(detector) as steps:
        fit(detector, 1, tmp_path)

    images, box_targets, class_targets = batch()
    maps = trunk(images)
    cut = {name: z.detach().requires_grad_() for name, z in maps.items()}
    losses = [F.l1_loss(boxes(cut), box_targets), F.cross_entropy(classes(cut), class_targets)]
    own = [
        torch.autograd.grad(loss, [*cut.values(), *head.parameters()]) for loss, head in zip(losses, (boxes, classes), strict=True)
    ]
    flat = [torch.cat([g.double().flatten() for g in row[:2]]) for row in own]
    assert flat[0] @ flat[1] < 0, "surgery must matter"
    pieces = gs.aggregate(flat, "pcgrad").split([z.numel() for z in cut.values()])
    gradients = [piece.view_as(z).float() for piece, z in zip(pieces, cut.values(), strict=True)]
    expected = torch.autograd.grad(list(maps.values()), list(trunk.parameters()), gradients)

    for (name, _), g in zip(trunk.named_parameters(prefix="trunk"), expected, strict=True):
        torch.testing.assert_close(steps[0][name], g, rtol=1e-5, atol=1e-5 * float(g.abs().max()))
    for head, row in zip(("boxes", "classes"), own, strict=True):
        for (name, _), g in zip(detector.get_submodule(head).named_parameters(prefix=head), row[2:], strict=True):
            assert torch.equal(steps[0][name], g), name


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
def test_it_learns(loop: Any, tmp_path: Path) -> None:
    metrics = fit(loop.Detector(*parts()), 12, tmp_path)
    assert all(values[-1] < 0.9 * values[0] for values in metrics.values.values()), metrics.values
