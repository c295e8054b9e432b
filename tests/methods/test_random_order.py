"""Random orders: uniform, independent between tasks, and a function of (seed, step) alone, the same in every implementation."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Step, build
from gradsurgery.ops import reference

_host = pytest.importorskip("gradsurgery._host", reason="gradsurgery is installed without compiled code")
INT64 = st.integers(-(2**63), 2**63 - 1)
CONFLICTS = torch.tensor([[-4.0, -4.0], [2.0, -4.0], [2.0, 4.0]], dtype=torch.float64)  # any order of task 2 shows in the weights


def order_of(seed: int, step: int, tasks: int, group: int = 0) -> Tensor:
    return torch.from_numpy(_host.pcgrad_order(seed, step, group, tasks)).long()


@given(seed=INT64, step=st.integers(0, 2**63 - 1), group=st.integers(0, 2**31 - 1), tasks=st.integers(1, 40))
def test_reference_and_host_draw_the_same_orders(seed: int, step: int, group: int, tasks: int) -> None:
    order = order_of(seed, step, tasks, group)
    assert torch.equal(reference.random_order(torch.tensor([seed, step]), tasks, group), order)
    assert torch.equal(order.sort(dim=1).values, torch.arange(tasks).expand(tasks, tasks))


@given(seed=INT64, step=st.integers(0, 2**63 - 2), tasks=st.integers(2, 40))
def test_the_kernel_walks_the_order_that_the_key_names(seed: int, step: int, tasks: int) -> None:
    G = torch.randn(tasks, 3, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64)
    K, key = G @ G.T, torch.tensor([seed, step])
    w = torch.ops.gradsurgery.pcgrad_weights(K, None, key)
    assert key.tolist() == [seed, step + 1]
    assert torch.equal(w, torch.ops.gradsurgery.pcgrad_weights(K, order_of(seed, step, tasks)))


def test_philox_is_the_published_one() -> None:
    """Salmon et al.'s known answers for Philox 4x32-10 on all ones and on the digits of pi."""
    ones = torch.tensor(-1)
    words = reference.philox(ones, ones, torch.tensor(0xFFFFFFFF), torch.tensor(0xFFFFFFFF))
    assert words.tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    seed, step = (torch.tensor(low | high << 32) for low, high in ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3 - 2**32)))
    words = reference.philox(seed, step, torch.tensor(0x13198A2E), torch.tensor(0x03707344))
    assert words.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def frequencies(tasks: int, draws: int, vary: str) -> list[Counter[tuple[int, ...]]]:
    """How often each task drew each order, over seeds or over the steps of one seed."""
    counted: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(tasks)]
    for k in range(draws):
        order = _host.pcgrad_order(k if vary == "seed" else 12345, k if vary == "step" else 0, 0, tasks)
        for task in range(tasks):
            counted[task][tuple(order[task].tolist())] += 1
    return counted


@pytest.mark.parametrize("vary", ["seed", "step"])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_orders_are_uniform(tasks: int, vary: str) -> None:
    every = math.factorial(tasks)
    expected = 400
    for counts in frequencies(tasks, expected * every, vary):
        assert len(counts) == every, "every order comes up"
        spread = math.sqrt(expected)
        assert all(abs(count - expected) < 5 * spread for count in counts.values()), counts


def test_each_task_draws_its_own_order() -> None:
    """All 36 pairs of orders of two tasks come up equally often."""
    pairs: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for step in range(36 * 200):
        order = _host.pcgrad_order(5, step, 0, 3)
        pairs[tuple(order[0].tolist()), tuple(order[2].tolist())] += 1
    assert len(pairs) == 36
    assert all(abs(count - 200) < 5 * math.sqrt(200) for count in pairs.values())


def test_groups_seeds_and_steps_draw_apart() -> None:
    base = order_of(1, 2, 12)
    for other in (
        order_of(2, 2, 12),
        order_of(1, 3, 12),
        order_of(1, 2, 12, group=1),
        order_of(1 + 2**32, 2, 12),
        order_of(1, 2 + 2**32, 12),
    ):
        assert not torch.equal(other, base)


# --- state and seeds --------------------------------------------------------------------------------------------------------------


def test_state_counts_steps_and_names_the_order(device: torch.device) -> None:
    method = build("pcgrad", seed=77)
    state = {name: tensor.to(device) for name, tensor in method.initial_state().items()}
    K = gs.gram(CONFLICTS.to(device))
    for step in range(5):
        assert state["key"].tolist() == [77, step]
        w = method.weights(K, Step(state))
        torch.testing.assert_close(w, gs.weights(K, "pcgrad", order=order_of(77, step, 3)), rtol=1e-14, atol=0)
    fixed = [build("pcgrad", order="ascending"), build("pcgrad", order=torch.arange(3).expand(3, 3))]
    assert all(not method.initial_state() for method in fixed)


def test_a_seed_without_state_is_its_step_zero() -> None:
    w = gs.weights(gs.gram(CONFLICTS), "pcgrad", seed=9)
    assert torch.equal(w, gs.weights(gs.gram(CONFLICTS), "pcgrad", order=order_of(9, 0, 3)))
    assert torch.equal(w, gs.weights(gs.gram(CONFLICTS), "pcgrad", seed=9))


def outcomes(draws: int) -> list[tuple[float, ...]]:
    given = itertools.cycle((CONFLICTS, list(CONFLICTS)))
    return [tuple(gs.aggregate(next(given), "pcgrad").tolist()) for _ in range(draws)]  # type: ignore[union-attr]


def test_without_seed_and_state_torchs_generator_decides() -> None:
    torch.manual_seed(4)
    first = outcomes(40)
    assert len(set(first)) > 1
    torch.manual_seed(4)
    assert outcomes(40) == first
    torch.manual_seed(5)
    assert outcomes(40) != first
