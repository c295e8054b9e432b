"""Every provider is right, and a wrong one is refused: by the float64 oracle, in the order that was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import Case, gradients
from oracle import check, pcgrad
from providers import PROVIDERS, Provider, Run
from surgery import surgery_rows
from timing import Effort
from torch import Tensor

TINY = Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2))


def provider_named(name: str) -> Provider:
    if name == "torchjd":
        pytest.importorskip("torchjd")
    return PROVIDERS[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tasks", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("name", PROVIDERS)
def test_right(name: str, tasks: int, dtype: str, device: torch.device) -> None:
    provider = provider_named(name)
    grads = gradients(Case(tasks, 1021, dtype), device)
    run = provider.prepare(grads)
    for seed in range(3):
        assert check(provider, run, grads, seed) <= (5e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("name", PROVIDERS)
def test_leaves_the_gradients_alone_and_repeats_itself(name: str) -> None:
    provider = provider_named(name)
    grads = gradients(Case(4, 1021), torch.device("cpu"))
    before = grads.clone()
    run = provider.prepare(grads)
    first = check(provider, run, grads)
    assert check(provider, run, grads) == first
    assert torch.equal(grads, before)


def summed(grads: Tensor) -> Run:
    return lambda: grads.sum(0)


def projected_on_projected(grads: Tensor) -> Run:
    """A known mistake: each task is projected off the others' already projected gradients."""

    def run() -> Tensor:
        own = PROVIDERS["explicit"].orders(len(grads))
        rows = [g.clone() for g in grads]
        for i, order in enumerate(own):
            for j in order:
                dot = torch.dot(rows[i], rows[j])
                if dot < 0:
                    rows[i] -= dot / torch.dot(rows[j], rows[j]) * rows[j]
        return torch.stack(rows).sum(0)

    return run


def averaged(grads: Tensor) -> Run:
    run = PROVIDERS["explicit"].prepare(grads)
    return lambda: run() / len(grads)


def not_a_number(grads: Tensor) -> Run:
    return lambda: torch.full_like(grads[0], torch.nan)


@pytest.mark.parametrize("wrong", [summed, projected_on_projected, averaged, not_a_number])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_algorithms_are_refused(wrong: Callable[[Tensor], Run], dtype: str) -> None:
    grads = gradients(Case(4, 1021, dtype), torch.device("cpu"))
    provider = replace(PROVIDERS["explicit"], name="wrong", prepare=wrong)
    with pytest.raises(AssertionError, match="wrong: off by"):
        check(provider, wrong(grads), grads)


def test_another_order_is_refused() -> None:
    explicit = PROVIDERS["explicit"]
    other = replace(explicit, orders=lambda tasks: [order[::-1] for order in explicit.orders(tasks)])
    grads = gradients(Case(4, 1021), torch.device("cpu"))
    with pytest.raises(AssertionError, match="off by"):
        check(other, other.prepare(grads), grads)


@pytest.mark.parametrize(
    ("result", "found"), [(torch.zeros(7), r"float32 \[7\]"), (torch.zeros(8, dtype=torch.float64), r"float64 \[8\]")]
)
def test_another_form_is_refused(result: Tensor, found: str) -> None:
    grads = gradients(Case(2, 8), torch.device("cpu"))
    with pytest.raises(AssertionError, match=f"expected torch.float32 .8., found torch.{found}"):
        check(PROVIDERS["explicit"], lambda: result, grads)


def test_oracle_by_hand() -> None:
    # g0 = (1, 0), g1 = (-1, 1), g2 = (-1, -1). Task 0 off g1: (1/2, 1/2), which no longer conflicts much with g2: dot -1 -> (0, 0).
    grads = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    # Task 1 off g0: (0, 1), then g2 . (0, 1) = -1 -> (-1/2, 1/2). Task 2 off g0: (0, -1), then g1 -> (-1/2, -1/2).
    assert pcgrad(grads, [[1, 2], [0, 2], [0, 1]]).tolist() == [-1.0, 0.0]
    # Task 1 meets g2 first: no conflict (0), then g0 -> (0, 1).
    assert pcgrad(grads, [[1, 2], [2, 0], [0, 1]]).tolist() == [-0.5, 0.5]


def test_gradients_conflict_alike_at_every_size() -> None:
    signs = []
    for numel in (100_000, 3_000_000):  # more than one chunk
        grads = gradients(Case(4, numel), torch.device("cpu"))
        assert torch.equal(grads, gradients(Case(4, numel), torch.device("cpu")))
        signs.append((grads @ grads.T) < 0)
    assert torch.equal(*signs)
    assert 0 < int(signs[0].sum()) < 12


def test_rows() -> None:
    providers = [PROVIDERS[name] for name in ("gradsurgery", "gram", "explicit")]
    rows = surgery_rows([Case(3, 1000), Case(2, 10)], TINY, torch.device("cpu"), providers)
    assert [(r["tasks"], r["numel"], r["provider"]) for r in rows] == [
        (T, N, p.name) for T, N in ((3, 1000), (2, 10)) for p in providers
    ]
    for row in rows:
        assert row["kind"] == "surgery"
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["samples"] == 2
        assert row["floor_gb_per_s"] == pytest.approx((2 * row["tasks"] + 1) * row["numel"] * 4 / row["p50"] / 1e9)


def test_no_row_of_a_wrong_provider() -> None:
    wrong = replace(PROVIDERS["explicit"], name="wrong", prepare=summed)
    with pytest.raises(AssertionError, match="wrong: off by"):
        surgery_rows([Case(3, 1000)], TINY, torch.device("cpu"), [PROVIDERS["gradsurgery"], wrong])


def test_left_out_is_said() -> None:
    assert "GB a call" in str(Case(16, 30_000_000).left_out("explicit"))
    assert Case(16, 30_000_000).left_out("gradsurgery") is None
    assert Case(8, 30_000_000).left_out("explicit") is None
