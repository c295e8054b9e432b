"""Gradients whose values are not what lies in memory: negated by a bit, or zeros without storage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from methods.gradients import FROM_GRAM
from torch import Tensor

import gradsurgery as gs


def negated(*shape: int) -> Tensor:
    """What the imaginary part of a conjugate is: a view of the unnegated numbers."""
    result = torch.randn(shape, dtype=torch.complex64).conj().imag
    assert result.is_neg()
    return result


def zeros(*shape: int) -> Tensor:
    result = torch._efficientzerotensor(shape)
    assert torch._is_zerotensor(result)
    return result


@pytest.mark.parametrize("lazy", [negated, zeros])
@pytest.mark.parametrize("numel", [6, 20_000])
def test_the_values_count(lazy: Callable[..., Tensor], numel: int) -> None:
    G = lazy(4, numel)
    mixed = [torch.randn(numel), lazy(numel), None, lazy(numel)]
    w = torch.tensor([0.5, 2.0, -1.0, 1.0])
    for given in (G, list(G), mixed):
        plain = [None if g is None else torch.zeros_like(g) + g for g in given]
        assert torch.equal(gs.gram(given), gs.gram(plain))
        assert torch.equal(gs.combine(given, w), gs.combine(plain, w))
        for method in FROM_GRAM:
            options = {"seed": 1} if "seed" in gs.methods()[method].options else {}
            assert torch.equal(gs.aggregate(given, method, **options), gs.aggregate(plain, method, **options))


@pytest.mark.parametrize("lazy", [negated, zeros])
def test_the_values_count_in_groups(lazy: Callable[..., Tensor]) -> None:
    given = [[torch.randn(6), lazy(4), lazy(2)], [lazy(6), None, torch.randn(2)]]
    plain = [[None if g is None else torch.zeros_like(g) + g for g in row] for row in given]
    w, labels = torch.randn(2, 2, dtype=torch.float64), ["a", "b", "a"]
    assert torch.equal(gs.gram(given, groups=labels), gs.gram(plain, groups=labels))
    assert torch.equal(gs.gram(given, against=plain), gs.gram(plain, against=plain))
    both = zip(gs.combine(given, w, groups=labels), gs.combine(plain, w, groups=labels), strict=True)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("lazy", [negated, zeros])
def test_the_values_count_by_sample(lazy: Callable[..., Tensor]) -> None:
    given = [torch.randn(3, 6), lazy(3, 6), None, lazy(3, 6)]
    plain = [None if g is None else torch.zeros_like(g) + g for g in given]
    w = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(gs.gram(given, samples=True), gs.gram(plain, samples=True))
    assert torch.equal(gs.combine(given, w, samples=True), gs.combine(plain, w, samples=True))  # type: ignore[arg-type]
    one, other = (gs.aggregate(grads, "pcgrad", seed=1, samples=True) for grads in (given, plain))
    assert torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("numel", [6, 20_000])
def test_out_may_be_negated(numel: int) -> None:
    G, w = torch.randn(3, numel), torch.ones(3)
    out = negated(numel)
    assert torch.equal(gs.combine(G, w, out=out), gs.combine(G, w))
    out = negated(numel)
    assert torch.equal(gs.aggregate(G, "pcgrad", order="ascending", out=out), gs.aggregate(G, "pcgrad", order="ascending"))


def test_derivatives_of_negated_gradients() -> None:
    z = torch.randn(2, 4, dtype=torch.complex128, requires_grad=True)
    (lazily,) = torch.autograd.grad(gs.gram(z.conj().imag).tril().sum(), z)
    (plainly,) = torch.autograd.grad(gs.gram(-z.imag).tril().sum(), z)
    torch.testing.assert_close(lazily, plainly)
