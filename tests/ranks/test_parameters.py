"""Surgery on the parameters of replicated models: the ranks find what one process finds with the whole batch."""

from __future__ import annotations


from functools import cache

import pytest
import torch
from ranks import parameters
from ranks.launch import ranks
from ranks.parameters import SIZE, Run, Setting
from tolerances import TOLERANCES

PCGRAD = Setting("pcgrad", {"seed": 3})


def assert_same(found: list[Run], expected: Run, rtol: float = 1e-12) -> None:
    """All ranks bit by bit like the first, and that one near to the single process."""
    for other in found[1:]:
        assert torch.equal(other.parameters, found[0].parameters)
        assert all(map(torch.equal, other.weights, found[0].weights))
    one = found[0]
    for w, expected_w in zip(one.weights, expected.weights, strict=True):
        torch.testing.assert_close(w, expected_w, rtol=rtol, atol=rtol)
    torch.testing.assert_close(one.parameters, expected.parameters, rtol=rtol, atol=rtol)
    for run in found:
        assert run.none == expected.none
        assert run.present == expected.present
        assert run.strides == expected.strides
        for K, right in zip(run.grams, expected.grams, strict=True):
            assert (K is None) == (right is None)
            if K is not None and right is not None:
                torch.testing.assert_close(K, right, rtol=rtol, atol=rtol)


def check(world: int, setting: Setting, rtol: float = 1e-12) -> None:
    assert_same(ranks(world, parameters.train, setting), parameters.run(setting), rtol)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "upgrad", "nashmtl"])
def test_as_one_process(method: str, world: int) -> None:
    check(world, Setting(method, {"seed": 3} if method == "pcgrad" else {}), 1e-12 if method != "nashmtl" else 1e-11)


# From some step on, which tasks the samples of a part of the batch have: quarters, so that with 2 ranks a rank sees two of them.
ABSENT = {
    **{(2, n): ("a", "b") for n in range(6)},  # c on the other ranks only
    **{(3, n): ("a", "c") for n in range(SIZE)},  # b nowhere
    **{(4, n): () for n in range(6)},  # ranks without any task
    **{(5, n): ("b",) for n in range(SIZE)},  # one task everywhere,
    **{(6, n): ("b",) if n < 3 else () for n in range(SIZE)},  # or on one rank alone
    **{(7, n): ("b",) if n < 6 else ("c",) for n in range(SIZE)},
}
FIRST = {(0, n): ("a", "b") for n in range(6)}

SETTINGS = {
    "float32": PCGRAD.but(dtype=torch.float32),
    "one bucket": PCGRAD.but(bucket=25 << 20, steps=3),
    "channels_last": PCGRAD.but(channels_last=True, steps=3),
    "bfloat16": PCGRAD.but(dtype=torch.bfloat16, steps=2),
    "absent tasks": PCGRAD.but(present=ABSENT, steps=10),
    "absent tasks with inputs": PCGRAD.but(present=ABSENT | FIRST, inputs=True, steps=10),
    "absent tasks, nashmtl": Setting("nashmtl", present=ABSENT, steps=10),
    "by layer": PCGRAD.but(options={"seed": 3, "group_by": "layer"}, present=ABSENT, steps=10),
    "micro-batches": PCGRAD.but(micro=2, steps=4),
    "micro-batches with absent tasks": PCGRAD.but(micro=2, steps=10, present=ABSENT | FIRST, inputs=True),
    "scaler": PCGRAD.but(scale=2.0**10, steps=3),
    "scaler and micro-batches": PCGRAD.but(scale=2.0**10, micro=2, steps=3),
    "every": PCGRAD.but(options={"seed": 3, "every": 3}, steps=8),
    "every by layer": PCGRAD.but(options={"seed": 3, "every": 3, "group_by": "layer"}, steps=8),
    "one task": PCGRAD.but(tasks=("a",), steps=3),
    "losses": Setting("mgda", {"gn": "loss"}, steps=3, present=ABSENT),
    "batched": PCGRAD.but(backward={"passes": "batched"}, steps=3),
    "replaced": PCGRAD.but(backward={"accumulate": False}, steps=3),
    "sum": Setting("sum", steps=3),
}


@cache
def runs(world: int) -> list[list[Run]]:
    """Of every setting the ranks' runs. [S][world]"""
    return list(zip(*ranks(world, parameters.train_all, list(SETTINGS.values())), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, world: int) -> None:
    setting, found = SETTINGS[name], list(runs(world)[list(SETTINGS).index(name)])
    expected = parameters.run(setting)
    assert_same(found, expected, 64 * TOLERANCES[setting.dtype].rounding * setting.steps)
