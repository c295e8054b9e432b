"""What a model has to beat: the best answer that looks at no image, chosen on the training set, measured on the validation set."""

from __future__ import annotations

import torch
from harness.classification import majority, majority_floors
from torch import Tensor

from multihead.data import ProductDataset
from multihead.metrics import TaskMetrics
from multihead.targets import Binned, Standardised, Targets, Vocabulary


class ConstantAnswer:
    """The majority class and the median number of training; of losses, the classes' or bins' frequencies, or the mean number."""

    def __init__(self, data: ProductDataset, targets: Targets) -> None:
        self.targets = targets
        self.outputs: dict[str, Tensor] = {}  # [outputs]
        self.labels: dict[str, Tensor] = {}  # of training, classes alone
        self.medians: dict[str, float] = {}
        for task, target in targets.items():
            known = data.known_targets(task)
            if isinstance(target, Standardised):
                self.outputs[task] = torch.zeros(1)
            else:
                classes = target.bin_of(known) if isinstance(target, Binned) else known.long()
                self.outputs[task] = (torch.bincount(classes, minlength=target.outputs) / len(known)).log()
            if isinstance(target, Vocabulary):
                self.labels[task] = known.long()
            else:
                self.medians[task] = float(known.median())

    def measure(self, data: ProductDataset) -> dict[str, float]:
        """Its metrics over `data`, under the names that a model's have."""
        floors: dict[str, float] = {}
        for task, target in self.targets.items():
            truth = data.known_targets(task)
            meter = TaskMetrics(task, target, torch.device("cpu"))
            meter.update(self.outputs[task].expand(len(truth), -1), truth, torch.ones_like(truth, dtype=torch.bool))
            floors |= meter.compute()
            if task in self.labels:
                floors |= majority_floors(task, target.outputs, self.labels[task], truth.long())
            elif len(truth):
                floors[f"{task}/absolute_error"] = float((truth - self.medians[task]).abs().mean())
        return floors

    def describe(self) -> str:
        """The answer in words."""
        words = []
        for task, target in self.targets.items():
            if isinstance(target, Vocabulary):
                words.append(f"the {task} {target.names[majority(self.labels[task])]!r}")
            else:
                words.append(f"a {task} of {self.medians[task]:.1f} (the median)")
        return ", ".join(words)
