"""What every reader of images hands over, and the names of the classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COARSE_CLASSES = ("vehicle", "animal")
COARSE_OF_FINE = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """One split: where it comes from, its RGB pixels [N, 3, 32, 32] uint8, and its classes [N] int64 in 0..9."""

    name: str
    pixels: Pixels
    labels: npt.NDArray[np.int64]

    def first(self, count: int | None) -> Images:
        """The first `count` images, or all there are."""
        return Images(self.name, self.pixels[:count], self.labels[:count])
