"""What a model has to beat: the best answer that looks at no image, chosen on the training set, measured on the validation set."""

from __future__ import annotations

import torch
from torch import Tensor

from multihead.data import ProductDataset
from multihead.metrics import TaskMetrics
from multihead.targets import Binned, Standardised, Targets, Vocabulary


class ConstantAnswer:
    """The classes' frequencies in training, so the majority class, and the median number.

    Of a number's loss the floor is that of the frequencies of its bins, or of its mean, which the loss asks for.
    """

    def __init__(self, data: ProductDataset, targets: Targets) -> None:
        self.targets = targets
        self.outputs: dict[str, Tensor] = {}  # [outputs]
        self.medians: dict[str, float] = {}
        for task, target in targets.items():
            known = data.known_targets(task)
            if isinstance(target, Standardised):
                self.outputs[task] = torch.zeros(1)
            else:
                classes = target.bin_of(known) if isinstance(target, Binned) else known.long()
                frequencies = torch.bincount(classes, minlength=target.outputs) / len(known)
                # The first of equally frequent classes is the most probable, in every metric.
                self.outputs[task] = frequencies.log() - 1e-6 * torch.arange(target.outputs)
            if not isinstance(target, Vocabulary):
                self.medians[task] = float(known.median())

    def measure(self, data: ProductDataset) -> dict[str, float]:
        """Its metrics over `data`, under the names that a model's have."""
        floors: dict[str, float] = {}
        for task, target in self.targets.items():
            truth = data.known_targets(task)
            meter = TaskMetrics(task, target, torch.device("cpu"))
            meter.update(self.outputs[task].expand(len(truth), -1), truth, torch.ones_like(truth, dtype=torch.bool))
            floors |= meter.compute()
            if task in self.medians and len(truth):
                floors[f"{task}/absolute_error"] = float((truth - self.medians[task]).abs().mean())
        return floors

    def describe(self) -> str:
        """The answer in words."""
        words = []
        for task, target in self.targets.items():
            if isinstance(target, Vocabulary):
                words.append(f"the {task} {target.names[int(self.outputs[task].argmax())]!r}")
            else:
                words.append(f"a {task} of {self.medians[task]:.1f} (the median)")
        return ", ".join(words)
