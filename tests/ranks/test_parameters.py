"""Surgery on the parameters of replicated models: the ranks find what one process finds with the whole batch."""

from __future__ import annotations

import pytest
import torch
from ranks import parameters
from ranks.launch import ranks
from ranks.parameters import SIZE, TASKS, Run, Setting
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
    check(world, Setting(method, {"seed": 3} if method == "pcgrad" else {}))


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


@pytest.fixture(scope="module", params=[2, 3])
def runs(request: pytest.FixtureRequest) -> dict[str, list[Run]]:
    """Of every setting the ranks' runs."""
    each = ranks(request.param, parameters.train_all, list(SETTINGS.values()))
    return {name: list(of_setting) for name, *of_setting in zip(SETTINGS, *each, strict=True)}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, runs: dict[str, list[Run]]) -> None:
    setting, found = SETTINGS[name], runs[name]
    expected = parameters.run(setting)
    assert_same(found, expected, 64 * TOLERANCES[setting.dtype].rounding * setting.steps)


@pytest.mark.parametrize("how", ["plain", "find_unused_parameters", "static_graph", "find_unused_parameters no_sync", "module"])
def test_under_distributed_data_parallel(how: str) -> None:
    expected = parameters.run(PCGRAD.but(steps=3))
    (found, weights), other = ranks(2, parameters.wrapped, how)
    torch.testing.assert_close(found, expected.parameters, rtol=1e-12, atol=1e-12)
    for w, right in zip(weights, expected.weights, strict=True):
        torch.testing.assert_close(w, right, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, other[0])


@pytest.mark.parametrize("with_nothing", [False, True])
def test_surgery_before_averaging(with_nothing: bool) -> None:
    """The mean of what every rank finds alone; with ``with_nothing`` one of them has no task."""
    each = ranks(2, parameters.local, with_nothing)
    for n, gradient in enumerate(each[0][0]):
        alone = [found[1][n] for found in each]
        assert (gradient is None) == all(g is None for g in alone)
        if gradient is not None:
            expected = sum((g / 2 for g in alone if g is not None), torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, expected, rtol=1e-15, atol=1e-15)
            assert torch.equal(gradient, each[1][0][n])


@pytest.mark.parametrize("world", [2, 3])
def test_traffic(world: int) -> None:
    """(T + 1) N b (W - 1)/W bytes a rank, K in one message of T (T + 1)/2 doubles, and one of flags."""
    T, N = len(TASKS), 5 * 3 * 9 + 5 + 45 * 7 + 7
    for steps in ranks(world, parameters.traffic, 1):
        for found in steps:
            assert found["reduce_scatter"] + found["all_gather"] == pytest.approx((T + 1) * N * 8 * (world - 1) / world, rel=0.05)
            assert found["messages of reduce_scatter"] == T
            assert found["messages of all_gather"] == 1
            doubles, flags = T * (T + 1) // 2, 4
            assert found["messages of all_reduce"] == 2
            assert found["all_reduce"] == pytest.approx((8 * doubles + 4 * flags) * 2 * (world - 1) / world, abs=2)


def test_traffic_of_kept_weights() -> None:
    """One weighted pass, and the average of one gradient."""
    N = 5 * 3 * 9 + 5 + 45 * 7 + 7
    _, second = ranks(2, parameters.traffic, 3)[0]
    assert set(second) == {"all_reduce", "messages of all_reduce"}
    assert second["messages of all_reduce"] == 1
    assert second["all_reduce"] == pytest.approx(N * 8, rel=0.05)
