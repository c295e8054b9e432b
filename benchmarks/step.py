"""What surgery adds to a training step: ResNet-18, three tasks, the summed loss against the two forms at the representation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from results import Row
from timing import Effort, interleave
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gradsurgery as gs

TASKS = 3
FORMS = ("plain", "split", "detach")


def trunk() -> nn.Module:
    """ResNet-18 to its last feature map: [B, 3, H, W] -> [B, 512, H/32, W/32]."""
    from torchvision.models import resnet18  # type: ignore[import-untyped]  # it has no stubs

    return nn.Sequential(*list(resnet18().children())[:-2])


def dense_head(size: int) -> nn.Module:
    """A decoder to full resolution: [B, 512, H/32, W/32] -> [B, 1, H, W]."""
    return nn.Sequential(
        nn.Conv2d(512, 64, 1),
        nn.ReLU(),
        nn.Upsample((size, size), mode="bilinear"),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 1, 1),
    )


def small_head() -> nn.Module:
    """A classifier, so that hardly anything hides the cost of surgery: [B, 512, H/32, W/32] -> [B, 10]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


@dataclass(frozen=True)
class Batch:
    """``count`` images of ``size`` x ``size``."""

    count: int
    size: int


class Experiment:
    """One model, one batch, one optimizer, and a training step in each form.

    Args:
        device: where to run.
        batch: how many images, how large.
        dense: decoders for heads rather than classifiers.
    """

    def __init__(self, device: torch.device, batch: Batch, dense: bool) -> None:
        torch.manual_seed(0)
        B, size = batch.count, batch.size
        self.point = {"batch": B, "size": size, "tasks": TASKS, "dense": dense}
        self.trunk = trunk().to(device)
        self.heads = nn.ModuleList([dense_head(size) if dense else small_head() for _ in range(TASKS)]).to(device)
        self.images = torch.randn(B, 3, size, size, device=device)
        shape = (B, 1, size, size) if dense else (B, 10)
        self.targets = [torch.randn(shape, device=device) for _ in range(TASKS)]
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-4)
        self.surgery = gs.GradientAggregator("pcgrad")

    def steps(self) -> dict[str, Callable[[], None]]:
        """A training step by name."""
        return {"plain": self.plain, "split": self.split, "detach": self.detach}

    def plain(self) -> None:
        self._update([self.trunk(self.images)] * TASKS)

    def split(self) -> None:
        self._update(self.surgery.split(self.trunk(self.images), TASKS))

    def detach(self) -> None:
        features = self.surgery.detach(self.trunk(self.images))
        for head, target in zip(self.heads, self.targets, strict=True):
            mse_loss(head(features), target).backward()
        self.surgery.backward()
        self._finish()

    def _update(self, features: list[Tensor] | tuple[Tensor, ...]) -> None:
        losses = [mse_loss(head(z), y) for head, z, y in zip(self.heads, features, self.targets, strict=True)]
        torch.stack(losses).sum().backward()
        self._finish()

    def _finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_rows(effort: Effort, device: torch.device, batch: Batch) -> list[Row]:
    """One row a form, from the same rounds."""
    experiment = Experiment(device, batch, dense=False)
    times = interleave(experiment.steps(), effort, device)
    return [{"kind": "step", "form": form, **experiment.point, **asdict(t)} for form, t in times.items()]
