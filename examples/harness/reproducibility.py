"""Seeds, random states, and an order of samples that is a function of (seed, epoch) alone."""

import os
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Sampler

from harness.processes import part_of


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed Python, NumPy and PyTorch; `deterministic` also makes PyTorch raise on operations without a reproducible result."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when CUDA starts
    torch.use_deterministic_algorithms(deterministic)


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that load without running code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `random_state` found it; CUDA's only on as many devices as there were."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class EpochSampler(Sampler[int]):
    """A permutation of the data set, a function of (seed, epoch), entered at sample `start`: a resumed epoch goes on exactly."""

    def __init__(self, data: Sized, seed: int) -> None:
        self.data, self.seed, self.epoch, self.start = data, seed, 0, 0

    def enter(self, epoch: int, start: int = 0) -> None:
        """Set which epoch the next iteration yields, and how many of its samples are already done."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed % 2**63, self.epoch)).permutation(len(self.data))
        return iter(order[self.start :].tolist())

    def __len__(self) -> int:
        return len(self.data) - self.start


class PartOfBatches(Sampler[list[int]]):
    """This process's part of every batch: batches are those of one process, and each rank has its samples in the same order."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        parts = (batch[part_of(len(batch))] for batch in self.batches)
        return (part for part in parts if part)
