"""The data set the trainer sees: pictures with a label for each task, turned and moved as asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cifar10.data.images import COARSE_OF_FINE, SIZE, Images

TASKS = ("fine", "coarse", "rotation")
ROTATIONS = ("0°", "90°", "180°", "270°")  # counterclockwise
_PADDING = 4


class CIFAR10Dataset(Dataset[dict[str, Tensor]]):
    """image float32 [3, 32, 32] in 0..1, and an int64 label for each task.

    The rotation task turns the picture that all tasks see by a random quarter; without that task pictures stay upright. The turn
    is a function of (seed, epoch, index) in training, of (seed, index) otherwise.

    Args:
        images: the pictures.
        tasks: out of TASKS.
        train: turn anew in every epoch.
        augment: also flip, and shift by up to 4 pixels, anew in every epoch.
        seed: of everything that is random here.
    """

    def __init__(self, images: Images, *, tasks: Sequence[str], train: bool, augment: bool, seed: int) -> None:
        self._pixels, self._fine = images.pixels, images.labels
        self.tasks, self._train, self._augment, self._seed = tuple(tasks), train, augment, seed
        # In shared memory, so that the workers of a persistent loader see set_epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the turns, flips and shifts of the coming epoch; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._pixels)

    def labels(self, task: str) -> Tensor:
        """The task's label of every picture, as it is in the current epoch. int64 [N]"""
        return torch.stack([self._label(task, index) for index in range(len(self))])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, found {index}")
        pixels = self._pixels[index]
        if self._augment:
            pixels = _moved(pixels, self._random(index, 1))
        if "rotation" in self.tasks:
            pixels = np.rot90(pixels, self._turn(index), axes=(1, 2))
        image = torch.from_numpy(pixels.astype(np.float32) / 255)
        return {"image": image, **{task: self._label(task, index) for task in self.tasks}}

    def _label(self, task: str, index: int) -> Tensor:
        if task == "rotation":
            return torch.tensor(self._turn(index))
        fine = int(self._fine[index])
        return torch.tensor(fine if task == "fine" else COARSE_OF_FINE[fine])

    def _turn(self, index: int) -> int:
        return int(self._random(index, 0).integers(len(ROTATIONS)))

    def _random(self, index: int, stream: int) -> np.random.Generator:
        """By stream, so that augmenting leaves the turns as they were."""
        return np.random.default_rng((self._seed, self._train, int(self._epoch) if self._train else 0, index, stream))


def _moved(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flipped or not, and shifted, with zeros coming in. [3, 32, 32]"""
    if rng.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    padded = np.pad(pixels, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
    top, left = rng.integers(2 * _PADDING + 1, size=2)
    return padded[:, top : top + SIZE, left : left + SIZE]
