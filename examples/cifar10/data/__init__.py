"""CIFAR-10 for multi-task learning: the official Python version, or drawings of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cifar10.data.batches import open_batches
from cifar10.data.dataset import ROTATIONS, TASKS, CIFAR10Dataset
from cifar10.data.drawings import GENERATED, draw_images
from cifar10.data.images import CLASSES, COARSE_CLASSES, Images

__all__ = ["CLASSES_OF", "COUNTS", "GENERATED", "TASKS", "CIFAR10Dataset", "Images", "open_images"]

COUNTS = {"train": 2500, "val": 500}
"""How many pictures are drawn where nothing else is asked for."""

CLASSES_OF = {"fine": CLASSES, "coarse": COARSE_CLASSES, "rotation": ROTATIONS}


def open_images(source: str | Path, split: Literal["train", "val"], *, count: int | None, seed: int) -> Images:
    """Drawings, or one split of the official data set.

    Args:
        source: "generated", or the path of cifar-10-batches-py or of the folder that holds it.
        split: "val" is the official test batch.
        count: of drawings, exactly so many (default: COUNTS); of files, the first so many.
        seed: of the drawings.
    """
    if source == GENERATED:
        return draw_images(split, count=COUNTS[split] if count is None else count, seed=seed)
    return open_batches(Path(source), split).first(count)
