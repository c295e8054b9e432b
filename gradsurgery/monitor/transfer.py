"""Many small tensors to the host in one go, without making the host wait for a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers: TypeAlias = npt.NDArray[np.float64]


class Transfer:
    """Tensors on their way to the host.

    Those of one device and dtype are put into one tensor there, which is copied at once. From CUDA into pinned memory, while the
    host goes on; the host's own are there immediately; from any other device the host waits for the copy here.

    Args:
        tensors: anywhere, of any shape and real dtype. They may be changed, or freed, afterwards.
        after: CUDA streams on which they are computed. The copies are on the current stream of each device, behind these.
    """

    def __init__(self, tensors: Sequence[Tensor], after: Iterable[torch.cuda.Stream] = ()) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        self._places: list[tuple[int, int]] = []  # of each tensor: in which part, and from where
        streams = list(after)
        parts: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        lengths: list[int] = []
        numbers: dict[tuple[torch.device, torch.dtype], int] = {}
        for tensor in tensors:
            key = (tensor.device, tensor.dtype)
            if key not in numbers:
                numbers[key] = len(lengths)
                lengths.append(0)
                parts[key] = []
            number = numbers[key]
            self._places.append((number, lengths[number]))
            lengths[number] += tensor.numel()
            parts[key].append(tensor.detach().reshape(-1))
        self._events: list[Any] = []
        self._kept: list[Tensor] = []  # on their devices, until the copies have been made
        with torch.no_grad():
            self._parts = [self._started(device, pieces, streams) for (device, _), pieces in parts.items()]

    def _started(self, device: torch.device, pieces: list[Tensor], streams: Sequence[torch.cuda.Stream]) -> Tensor:
        if device.type != "cuda":
            return torch.cat(pieces).cpu()
        current = torch.cuda.current_stream(device)
        for stream in streams:
            if stream.device == device and stream != current:
                current.wait_stream(stream)
        packed = torch.cat(pieces)
        there = torch.empty(packed.shape, dtype=packed.dtype, device="cpu", pin_memory=True)
        there.copy_(packed, non_blocking=True)
        self._events.append(current.record_event())
        self._kept += [packed, *pieces]
        return there

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""
        return all(event.query() for event in self._events)

    def wait(self) -> list[Numbers]:
        """The numbers of each tensor, of its shape."""
        for event in self._events:
            event.synchronize()
        self._events.clear()
        self._kept.clear()
        flat = [part.double().numpy() for part in self._parts]
        return [
            flat[number][start : start + shape.numel()].reshape(shape)
            for (number, start), shape in zip(self._places, self._shapes, strict=True)
        ]
