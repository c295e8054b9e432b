"""The PCGrad solver on the emulator against Algorithm 1 on full vectors, and its random order against Philox in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cuda_emulator import Emulator, Float64, placed
from oracles.pcgrad import projected

TASKS = (1, 2, 3, 5, 8, 9, 17, 31, 32, 33, 40)
Int64 = npt.NDArray[np.int64]


def gradients(tasks: int, seed: int = 0) -> Float64:
    """Rows with many conflicts. [T, 2T + 1]"""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=2 * tasks + 1)
    return generator.normal(size=(tasks, 2 * tasks + 1)) + np.where(np.arange(tasks) % 2, 0.5, -0.5)[:, None] * shared


def philox(seed: int, step: int, task: int, words: int) -> list[int]:
    """Philox 4x32-10 as its paper writes it; counter = (step, group 0, task << 16 | block)."""
    low = 0xFFFFFFFF
    result: list[int] = []
    for block in range(-(-words // 4)):
        c = [step & low, step >> 32 & low, 0, task << 16 | block]
        k = [seed & low, seed >> 32 & low]
        for _ in range(10):
            p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(q >> 32) ^ c[1] ^ k[0], q & low, (p >> 32) ^ c[3] ^ k[1], p & low]
            k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
        result += c
    return result


def random_order(seed: int, step: int, tasks: int) -> Int64:
    """Fisher-Yates from the end, one for each task. [T, T]"""
    order = np.tile(np.arange(tasks), (tasks, 1))
    for i in range(tasks):
        words = philox(seed, step, i, tasks)
        for draw, k in enumerate(range(tasks - 1, 0, -1)):
            other = words[draw] * (k + 1) >> 32
            order[i, [k, other]] = order[i, [other, k]]
    return order


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("tasks", TASKS)
def test_against_explicit_projections(emulator: Emulator, tasks: int, include_self: bool) -> None:
    for seed in range(3):
        G = gradients(tasks, seed)
        order = np.stack([np.random.default_rng([seed, i]).permutation(tasks) for i in range(tasks)])
        for given in (None, order):
            w, _ = emulator.pcgrad_weights(G @ G.T, order=given, include_self=include_self, scale=0.5)
            explicit = projected(torch.from_numpy(G), "ascending" if given is None else given.tolist(), include_self)
            np.testing.assert_allclose(w @ G, 0.5 * explicit.sum(0).numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tasks", TASKS)
def test_random_order(emulator: Emulator, tasks: int) -> None:
    G = gradients(tasks)
    K = G @ G.T
    for seed, step in ((0, 0), (7, 3), (-1, 2**40 + 5), (2**62 + 1, 1)):
        key = np.array([seed, step], dtype=np.int64)
        drawn, _ = emulator.pcgrad_weights(K, key=key)
        given, _ = emulator.pcgrad_weights(K, order=random_order(seed, step, tasks))
        assert np.array_equal(drawn, given)
        assert key.tolist() == [seed, step + 1]


def test_steps_draw_other_orders(emulator: Emulator) -> None:
    G = gradients(6)
    key = np.array([11, 0], dtype=np.int64)
    seen = {tuple(emulator.pcgrad_weights(G @ G.T, key=key)[0]) for _ in range(10)}
    assert len(seen) >= 8
    assert key.tolist() == [11, 10]


@pytest.mark.parametrize("tasks", [1, 2, 5, 8])
def test_fused_with_the_second_stage_of_the_gram(emulator: Emulator, tasks: int) -> None:
    """From partial sums the solver writes the K of the separate kernel, and the weights of that K."""
    pieces = [[placed(torch.from_numpy(g)[:1], p, torch.float32) for g in gradients(tasks, p)] for p in range(60)]
    pieces += [[placed(torch.randn(9000)) for _ in range(tasks)]]
    K = emulator.gram(pieces)
    for order in (None, random_order(1, 2, tasks)):
        w, fused = emulator.pcgrad_weights(pieces=pieces, order=order)
        assert np.array_equal(fused, K)
        assert np.array_equal(w, emulator.pcgrad_weights(K, order=order)[0])


@pytest.mark.parametrize("tasks", [2, 8, 32, 33])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gram_gives_nan_and_keeps_the_step(emulator: Emulator, tasks: int, value: float) -> None:
    for at in ((0, 0), (tasks - 1, tasks - 1), (0, tasks - 1)):
        K = np.eye(tasks)
        K[at] = value
        key = np.array([5, 9], dtype=np.int64)
        w, _ = emulator.pcgrad_weights(K, key=key)
        assert np.isnan(w).all()
        assert key.tolist() == [5, 9]


@pytest.mark.parametrize("tasks", [2, 8, 33])
@pytest.mark.parametrize("bad", [-1, 2**31, 2**32 + 1, 2**40])
def test_an_invalid_order_gives_nan(emulator: Emulator, tasks: int, bad: int) -> None:
    order = np.tile(np.arange(tasks), (tasks, 1))
    order[tasks - 1, 0] = bad
    w, _ = emulator.pcgrad_weights(np.eye(tasks), order=order)
    assert np.isnan(w).all()
    order[tasks - 1, 0] = tasks
    assert np.isnan(emulator.pcgrad_weights(np.eye(tasks), order=order)[0]).all()


def test_zero_rows_have_no_effect(emulator: Emulator) -> None:
    G = gradients(4)
    w, _ = emulator.pcgrad_weights(G @ G.T)
    padded = np.insert(G, 2, 0.0, axis=0)
    with_zero, _ = emulator.pcgrad_weights(padded @ padded.T)
    assert np.array_equal(np.delete(with_zero, 2), w)
    assert with_zero[2] == 1.0


def test_two_tasks_in_closed_form(emulator: Emulator) -> None:
    K = np.array([[4.0, -1.0], [-1.0, 2.0]])
    w, _ = emulator.pcgrad_weights(K)
    assert w.tolist() == [1.25, 1.5]
