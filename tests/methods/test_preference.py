"""One number a task, beside K: how it gets there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery.methods.preference import beside, given, presence
from gradsurgery.methods.registry import Step


class Calls(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda K: beside(K, [1.0, 2.0]),
        lambda K: given("pref", (1.0, 2.0), K),
        lambda K: presence(Step(present=(True, False)), K),
    ],
)
def test_nothing_is_copied_to_the_device(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    K = torch.empty(2, 2, dtype=torch.float64, device="meta")
    with Calls() as calls:
        result = make(K)
    assert calls.names <= {"empty", "select", "fill_"}, "a copy from the host's memory waits for a CUDA device"
    assert (result.device.type, result.dtype, result.shape) == ("meta", torch.float64, (2,))


def test_presence() -> None:
    like = torch.empty(3)
    assert presence(Step(), like) is None
    assert presence(Step(present=(True,) * 3), like) is None
    found = presence(Step(present=(True, False, True)), like)
    assert found is not None
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_given() -> None:
    K = torch.empty(2, 3, 3)
    assert given("pref", None, K) is None
    assert given("pref", "mean", K) is None
    found = given("pref", (1.0, -2.0, 0.5), K)
    assert found is not None
    assert found.tolist() == [1.0, -2.0, 0.5]
    with pytest.raises(ValueError, match="pref: expected 3 numbers, one a task, found 2"):
        given("pref", (1.0, 2.0), K)
