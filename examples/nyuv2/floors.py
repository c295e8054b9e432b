"""What a model has to beat: the best answer that looks at no image, chosen on the training set, measured on the validation set."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nyuv2.data.sample import IGNORE, INDOORS, DepthScale
from nyuv2.metrics import TaskMetrics

STEPS = 10_000  # of the depth's range: millimetres indoors


class ConstantAnswer:
    """The majority class, the median depth (to a 10,000th of its range) and the mean normal of a training set; no offset.

    The mean offset of every instance is 0: it is the answer that each pixel is its instance's center.
    """

    def __init__(
        self, batches: Iterable[dict[str, Tensor]], tasks: Sequence[str], classes: int, scale: DepthScale = INDOORS
    ) -> None:
        self.tasks, self.classes, self.scale = tuple(tasks), classes, scale
        labels = torch.zeros(classes, dtype=torch.int64)
        depths = torch.zeros(STEPS + 1, dtype=torch.int64)
        normals = torch.zeros(3, dtype=torch.float64)
        steps = STEPS / scale.maximum  # of one unit
        for batch in batches:
            labelled = batch["segmentation"][batch["segmentation"] != IGNORE]
            labels += torch.bincount(labelled, minlength=classes)
            if "depth" in tasks:
                depth = batch["depth"][batch["depth"] > 0]
                depths += torch.bincount((depth * steps).round().long().clamp(max=STEPS), minlength=STEPS + 1)
            if "normal" in tasks:
                normals += batch["normal"].double().sum((0, 2, 3))
        self.majority = int(labels.argmax())
        self.median_depth = max(int(torch.searchsorted(depths.cumsum(0), (depths.sum() + 1) // 2)), 1) / steps
        self.mean_normal = F.normalize(normals.float(), dim=0)

    def predict(self, task: str, target: Tensor) -> Tensor:
        """The answer in the shape of the task's prediction."""
        batch, height, width = target.shape[0], target.shape[-2], target.shape[-1]
        if task == "segmentation":
            answer = F.one_hot(torch.tensor(self.majority), self.classes).float()
        elif task == "depth":
            answer = torch.tensor([self.median_depth])
        elif task == "normal":
            answer = self.mean_normal
        else:
            answer = torch.zeros(2)
        return answer.to(target.device).view(1, -1, 1, 1).expand(batch, -1, height, width)

    def measure(self, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
        """Its metrics over the validation batches, under the names that a model's have."""
        meters = {task: TaskMetrics(task, self.classes, torch.device("cpu"), self.scale) for task in self.tasks}
        for batch in batches:
            for task, meter in meters.items():
                meter.update(self.predict(task, batch[task]), batch[task])
        floors: dict[str, Any] = {}
        for meter in meters.values():
            floors |= meter.compute()
        return floors
