"""How far the weights of a part of the parameters, or of an earlier step, are from those of the full Gram matrix, in training.

A ResNet-18 learns to find patterns that are planted in noise, by the gradient of the full Gram matrix. In every step the two
approximations give their weights for the same losses at the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from parameter_step import CLASSES, EVERY, Experiment, residual_trunk
from results import Row
from step import Batch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import gradsurgery as gs

TASKS = 3
# PCGrad without its random orders, so that nothing differs but the Gram matrix.
METHODS: dict[str, dict[str, Any]] = {"pcgrad": {"order": "ascending"}, "cagrad": {}, "mgda": {}}
APPROXIMATIONS = ("gram_on", "every")
LEARNING_RATE = 0.02


class Planted:
    """Images of two patterns each, out of ten for each place, in noise. Tasks 0 and 1 find the first, task 2 the second.

    The heads of tasks 0 and 1 start with opposite signs (``Experiment``), so that they want opposite features of the same pattern.
    """

    def __init__(self, device: torch.device, batch: Batch) -> None:
        self._generator = torch.Generator().manual_seed(1)
        self._device, self._batch = device, batch
        self._patterns = self._normal(2, CLASSES, 3, batch.size, batch.size)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def draw(self) -> tuple[Tensor, list[Tensor]]:
        """New images [B, 3, H, W], and the labels of the three tasks. [3] of [B]"""
        B, size = self._batch.count, self._batch.size
        first, second = torch.randint(CLASSES, (2, B), generator=self._generator)
        images = self._normal(B, 3, size, size) + 0.5 * (self._patterns[0, first] + self._patterns[1, second])
        return images.to(self._device), [labels.to(self._device) for labels in (first, first, second)]


@dataclass
class Distance:
    """What was found of one approximation, step by step."""

    weights: list[float] = field(default_factory=list)  # max_t |w_t - w_t of the full Gram matrix|
    cosines: list[float] = field(default_factory=list)  # between the two gradients of the trunk

    def add(self, weights: Tensor, gradient: Tensor, full_weights: Tensor, full_gradient: Tensor) -> None:
        self.weights.append(float((weights - full_weights).abs().max()))
        self.cosines.append(float(cosine_similarity(gradient.double(), full_gradient.double(), dim=0)))

    def row(self) -> Row:
        count = len(self.weights)
        return {
            "weights_mean": sum(self.weights) / count,
            "weights_max": max(self.weights),
            "cosine_mean": sum(self.cosines) / count,
            "cosine_min": min(self.cosines),
        }


def distance_rows(
    steps: int,
    device: torch.device,
    batch: Batch,
    build: Callable[[], nn.Sequential] = residual_trunk,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """One row for each method and approximation; a training run for each method."""
    rows: list[Row] = []
    for method, options in METHODS.items():
        experiment, planted = Experiment(device, batch, TASKS, build), Planted(device, batch)
        parameters = [*experiment.trunk.parameters(), *experiment.heads.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
        surgeries = {
            "gram_on": gs.GradientAggregator(method, tasks=TASKS, **options),
            "every": gs.GradientAggregator(method, tasks=TASKS, every=EVERY, **options),
            "full": gs.GradientAggregator(method, tasks=TASKS, **options),  # the last one's gradients are followed
        }
        found = {form: Distance() for form in APPROXIMATIONS}
        conflicts, losses_told = 0.0, []
        for _ in range(steps):
            experiment.images, experiment.labels = planted.draw()
            _, losses = experiment.losses()
            results: dict[str, tuple[Tensor, Tensor]] = {}
            for form, surgery in surgeries.items():
                experiment.release()
                surgery.backward(
                    losses,
                    shared=experiment.trunk,
                    retain_graph=form != "full",
                    gram_on=experiment.last_stage if form == "gram_on" else None,
                )
                weights = surgery.weights
                assert weights is not None  # these methods have some
                results[form] = weights.clone(), experiment.gradient(experiment.trunk)
            for form, distance in found.items():
                distance.add(*results[form], *results["full"])
            conflicts += float((surgeries["full"].statistics().gram < 0).sum()) / (TASKS * (TASKS - 1)) / steps
            losses_told.append(float(torch.stack(losses).detach().mean()))
            optimizer.step()
        point = {"kind": "weights distance", "method": method, **experiment.point, "steps": steps, "conflicts": conflicts}
        point |= {"first_loss": losses_told[0], "last_loss": losses_told[-1]}
        rows += [{**point, "form": form, **distance.row()} for form, distance in found.items()]
        say(f"{method}: " + ", ".join(f"{form} {distance.row()['weights_mean']:.2g}" for form, distance in found.items()))
    return rows
