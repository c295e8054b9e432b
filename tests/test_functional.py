"""gram, weights, combine and aggregate: results in every form, out=, and every documented error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.gradients import COORDINATEWISE, FEWEST, FROM_GRAM
from oracles.full_vectors import ORACLES, SEED
from tolerances import DTYPES, assert_combined_close, assert_gram_close
from torch import Tensor, nn

import gradsurgery as gs

METHODS = sorted({*FROM_GRAM, *COORDINATEWISE})


def options(method: str) -> dict[str, Any]:
    """What makes a method's answer the oracle's."""
    known = gs.methods()[method].options
    return {name: value for name, value in (("order", "ascending"), ("seed", SEED)) if name in known}


def weights(G: Tensor, method: str) -> Tensor | None:
    """A method's weights for these gradients, if it has any."""
    return None if gs.methods()[method].family == "coordinatewise" else gs.weights(gs.gram(G), method, **options(method))


def aggregate(grads: Any, method: str, **more: Any) -> Any:
    return gs.aggregate(grads, method, **(options(method) | more))


def eye(n: int, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
    return torch.eye(n, dtype=dtype, device=device)


# --- results ----------------------------------------------------------------------------------------------------------------------


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_aggregate_is_the_algorithm_on_full_vectors(method: str, dtype: torch.dtype, device: torch.device) -> None:
    for T, N in ((1, 5), (2, 1000), (3, 100), (5, 20_000)):
        if FEWEST.get(method, 1) > T:
            continue
        G = (torch.randn(T, N) - 0.3 * torch.randn(T, 1)).to(device, dtype)
        expected = ORACLES[method](G)
        w = weights(G, method)
        # Ten times: the weights carry the rounding of K.
        magnitude = G.double().abs().sum(0) if w is None else 10 * w.abs() @ G.double().abs()
        for result in (aggregate(G, method), *(() if w is None else (gs.combine(G, w),))):
            assert result.dtype == dtype
            assert_combined_close(result, expected, magnitude)


@pytest.mark.parametrize("method", METHODS)
def test_every_form_gives_one_answer(method: str, device: torch.device) -> None:
    G = torch.randn(4, 6, 5, device=device)
    pieces = [[row[:2], row[2:3], row[3:]] for row in G]
    expected_K, expected = gs.gram(G), aggregate(G, method)
    w = weights(G, method)
    for form in (
        G.flatten(1),
        list(G),
        tuple(G),
        pieces,
        [tuple(p) for p in pieces],
        nn.Parameter(G),
        [nn.Parameter(g) for g in G],
    ):
        torch.testing.assert_close(gs.gram(form), expected_K, rtol=1e-6, atol=1e-6)
        for result in (aggregate(form, method), *(() if w is None else (gs.combine(form, w),))):
            joined = torch.cat(result) if isinstance(result, list) else result
            torch.testing.assert_close(joined.reshape(6, 5), expected)
    assert aggregate(list(G), method).shape == (6, 5)
    assert [g.shape for g in aggregate(pieces, method)] == [(2, 5), (1, 5), (3, 5)]


def test_absent_tasks_and_gaps(device: torch.device) -> None:
    a, b = torch.randn(3, device=device), torch.randn(2, 2, device=device)
    grads = [[a, None, None], None, [2 * a, b, None]]
    K = gs.gram(grads)
    aa, bb = float(a.double() @ a.double()), float(b.double().square().sum())
    assert_gram_close(
        K, torch.tensor([[aa, 0, 2 * aa], [0, 0, 0], [2 * aa, 0, 4 * aa + bb]], dtype=torch.float64).to(device), a.dtype
    )
    first, second, nobody = gs.combine(grads, torch.tensor([1.0, 5.0, 0.5], device=device))  # type: ignore[misc]
    torch.testing.assert_close(first, 2 * a)
    torch.testing.assert_close(second, b / 2)
    assert nobody is None
    for method, scale in (("sum", 1.0), ("mean", 0.5), ("pcgrad", 1.0)):
        first, second, nobody = aggregate(grads, method)
        torch.testing.assert_close((first, second), (3 * scale * a, scale * b))
        assert nobody is None
        out = [torch.full_like(t, torch.nan) for t in (a, b, a)]
        assert aggregate(grads, method, out=out) is out
        torch.testing.assert_close(out, [3 * scale * a, scale * b, torch.zeros_like(a)])
    torch.testing.assert_close(aggregate([None, a, None], "mean"), a)
    assert torch.equal(gs.gram([None, a])[0], torch.zeros(2, dtype=torch.float64, device=device))


def test_results_are_made_like_the_gradients(device: torch.device) -> None:
    image = torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    for result in (aggregate([image, -image / 2], "pcgrad"), gs.combine([image, image], torch.ones(2, device=device))):
        assert result.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    mixed = aggregate([image.bfloat16(), image], "sum")
    assert mixed.dtype == torch.float32, "of a type that holds all"
    K = gs.gram(image)
    assert (K.dtype, K.device, K.shape) == (torch.float64, image.device, (2, 2))
    assert gs.weights(K).dtype == torch.float64


def test_no_coordinate_at_all() -> None:
    empty = torch.empty(3, 0)
    assert torch.equal(gs.gram(empty), torch.zeros(3, 3, dtype=torch.float64))
    for method in METHODS:
        assert aggregate(empty, method).shape == (0,)
        assert torch.equal(aggregate([[e, torch.ones(2)] for e in empty], method)[1], aggregate(torch.ones(3, 2), method))


def test_weights_are_converted(device: torch.device) -> None:
    G = torch.randn(3, 50, device=device)
    for dtype in DTYPES:
        w = torch.tensor([0.5, -2.0, 1.0], dtype=dtype, device=device)
        assert torch.equal(gs.combine(G, w), gs.combine(G, w.double()))
    strided = torch.tensor([[0.5, 9.0], [-2.0, 9.0], [1.0, 9.0]], device=device)[:, 0]
    assert torch.equal(gs.combine(G, strided), gs.combine(G, strided.contiguous()))
    K = gs.gram(G)
    transposed = torch.stack([K, K], dim=2)[:, :, 0]
    assert not transposed.is_contiguous()
    assert torch.equal(gs.weights(transposed, order="ascending"), gs.weights(K, order="ascending"))


# --- autograd ---------------------------------------------------------------------------------------------------------------------


def test_gram_and_combine_are_differentiable_and_out_is_not() -> None:
    G = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, dtype=torch.float32, requires_grad=True)
    gs.gram(list(G)).diagonal().sum().backward()
    assert G.grad is not None
    torch.testing.assert_close(G.grad, 2 * G.detach())
    G.grad = None
    combined = gs.combine(G, w)
    assert isinstance(combined, Tensor)
    combined.sum().backward()
    torch.testing.assert_close(G.grad, w.detach().double()[:, None].expand(3, 4))
    assert w.grad is not None
    torch.testing.assert_close(w.grad, G.detach().sum(1).float())
    out = torch.empty(4, dtype=torch.float64)
    assert not gs.combine(G, w, out=out).requires_grad  # type: ignore[union-attr]
    torch.testing.assert_close(out, combined.detach())
    for method in METHODS:
        for form in (G, list(G), [[g] for g in G]):
            result = aggregate(form, method)
            assert not (result[0] if isinstance(result, list) else result).requires_grad


def test_into_the_grad_of_a_parameter() -> None:
    parameter = nn.Parameter(torch.zeros(30))
    parameter.grad = torch.zeros(30)
    G = torch.randn(2, 30)
    assert aggregate(G, "pcgrad", out=parameter.grad) is parameter.grad
    assert torch.equal(parameter.grad, aggregate(G, "pcgrad"))
    aggregate(G, "pcgrad", out=parameter)  # a leaf that requires grad is written like under no_grad
    assert torch.equal(parameter.detach(), parameter.grad)
    assert parameter.is_leaf
    assert parameter.requires_grad


# --- out --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("numel", [40, 70_000])
def test_out_may_be_a_gradient(method: str, numel: int, device: torch.device) -> None:
    G = torch.randn(3, numel, device=device)
    expected = aggregate(G, method)
    for row in (0, 2):
        stacked = G.clone()
        assert aggregate(stacked, method, out=stacked[row]).data_ptr() == stacked[row].data_ptr()
        assert torch.equal(stacked[row], expected)
        rows = [g.clone() for g in G]
        assert aggregate(rows, method, out=rows[row]) is rows[row]
        assert torch.equal(rows[row], expected)
        lists = [[g[:7].clone(), g[7:].clone()] for g in G]
        assert aggregate(lists, method, out=lists[row]) is lists[row]
        torch.testing.assert_close(torch.cat(lists[row]), expected)
        w = weights(G, method)
        if w is not None:
            rows = [g.clone() for g in G]
            gs.combine(rows, w, out=rows[row])
            assert torch.equal(rows[row], expected)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_out_may_have_another_type_and_layout(out_dtype: torch.dtype, device: torch.device) -> None:
    G = torch.randn(3, 20, 30, device=device)
    wide = torch.zeros(20, 30, dtype=torch.float64, device=device)
    aggregate(G, "pcgrad", out=wide)
    out = torch.zeros(30, 40, dtype=out_dtype, device=device).T[::2]
    assert aggregate(G, "pcgrad", out=out) is out
    assert torch.equal(out, wide.to(out_dtype)) or device.type == "cuda"
    torch.testing.assert_close(out.double(), wide, rtol=torch.finfo(out_dtype).eps, atol=1e-3)
