"""Finds what waits for a device: on the meta device, without a GPU, copies from the host; on a GPU, all that torch knows of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MADE_ON_THE_HOST = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)
_MOVED = (Tensor.to, Tensor.copy_, Tensor.cuda, Tensor.type_as)


class NoHostCopies(TorchFunctionMode):
    """Raises where a tensor on a device is made of Python numbers, indexed with a list, or copied from the host blocking."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if func in _MADE_ON_THE_HOST:
            assert result.device.type == "cpu", f"{func} copies {args} to {result.device}"
        if func in _INDEXED and args[0].device.type != "cpu":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            from_host = [i for i in index if isinstance(i, list) or (isinstance(i, Tensor) and i.device.type == "cpu" and i.dim())]
            assert not from_host, f"{func} copies the index {from_host} to {args[0].device}"
        if func in _MOVED:
            source = args[1] if func is Tensor.copy_ else args[0]
            waits = source.device.type == "cpu" and result.device.type != "cpu" and not given.get("non_blocking")
            assert not waits, f"{func} copies {source} to {result.device}, and waits"
        return result


@contextmanager
def no_synchronization() -> Iterator[None]:
    """Raises where the host waits for a CUDA device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
