"""The data set the trainer sees: any source's samples at one size, augmented and kept as asked."""

from __future__ import annotations

from typing import Any

import torch
from harness.errors import DataError
from torch.utils.data import Dataset

from nyuv2.data.augment import View, draw_view, show
from nyuv2.data.sample import Sample, Source


class NYUv2Dataset(Dataset[Sample]):
    """Samples of `source` at `size`; augmented by views that depend on (seed, epoch, index) alone.

    Args:
        source: the reader.
        size: height and width of what is handed out.
        augment: show a random view of each sample instead of the sample as it is.
        seed: of the random views.
        count: at most this many samples, the first ones; None: all.
        keep: hold every loaded sample in memory, one copy a process (so with workers, use persistent ones).
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int],
        augment: bool,
        seed: int,
        count: int | None,
        keep: bool,
    ) -> None:
        if min(size) < 1:
            raise DataError(f"size: expected a positive height and width, found {size}")
        if count is not None and count < 1:
            raise DataError(f"count: expected at least one sample, found {count}")
        self.info = source.info
        self._source = source
        self._size = size
        self._augment = augment
        self._seed = seed
        self._length = len(source) if count is None else min(count, len(source))
        self._kept: dict[int, Sample] | None = {} if keep else None
        # In shared memory, so that the workers of a persistent loader see set_epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random views of the coming epoch; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"index: expected 0..{self._length - 1}, found {index}")
        view = draw_view(self._seed, int(self._epoch), index) if self._augment else View()
        return show(self._load(index), view, self._size)

    def _load(self, index: int) -> Sample:
        if self._kept is None:
            return self._source.load(index)
        if index not in self._kept:
            self._kept[index] = self._source.load(index)
        return self._kept[index]

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept samples: a worker loads its own."""
        return self.__dict__ | {"_kept": None if self._kept is None else {}}
