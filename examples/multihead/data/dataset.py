"""The data set the trainer sees: pictures at one size, and for every task a target with the word whether it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multihead.data.augment import View, draw_view, show
from multihead.data.images import as_float
from multihead.data.labels import Source

if TYPE_CHECKING:  # targets are made of labels, which are in this package
    from multihead.targets import Targets

KEPT_BYTES = 1 << 30  # pictures up to so much are decoded before training starts, and broken ones refused then


class ProductDataset(Dataset[dict[str, Tensor]]):
    """Samples of `source` at `size`; augmented by views that depend on (seed, epoch, index) alone.

    A sample has image, float32 [3, size, size] in 0..1, and for every task its target, float32 [], and "task/known", bool []: false
    where the label is missing, or a class that training never saw. What the target then is means nothing.
    """

    def __init__(self, source: Source, targets: Targets, *, size: int, augment: bool, seed: int) -> None:
        self.name, self.unit, self.labels = source.name, source.unit, source.labels
        self._source, self._size, self._augment, self._seed = source, size, augment, seed
        self._targets: dict[str, Tensor] = {}
        for task, target in targets.items():
            codes = [None if record[task] is None else target.encode(record[task]) for record in source.labels]
            self._targets[task] = torch.tensor([0.0 if code is None else code for code in codes], dtype=torch.float32)
            self._targets[f"{task}/known"] = torch.tensor([code is not None for code in codes])
        self._kept: list[Tensor] | None = None
        if len(source) * 3 * size * size <= KEPT_BYTES:
            self._kept = [source.load(index, size) for index in range(len(source))]
        # In shared memory, so that the workers of a persistent loader see set_epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random views of the coming epoch; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def known(self, task: str) -> Tensor:
        """Which samples count for `task`. bool [N]"""
        return self._targets[f"{task}/known"]

    def known_targets(self, task: str) -> Tensor:
        """The targets that count, in the order of the samples. float32 [known]"""
        return self._targets[task][self.known(task)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, found {index}")
        image = self._source.load(index, self._size) if self._kept is None else self._kept[index]
        view = draw_view(self._seed, int(self._epoch), index) if self._augment else View()
        sample: dict[str, Any] = {name: values[index] for name, values in self._targets.items()}
        return {"image": as_float(show(image, view)), **sample}
