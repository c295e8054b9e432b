"""gram, weights, combine and aggregate: every documented error, and what shares memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods.gradients import COORDINATEWISE, FROM_GRAM
from torch.autograd import forward_ad

import gradsurgery as gs
from gradsurgery.methods import build

METHODS = sorted({*FROM_GRAM, *COORDINATEWISE})

G = torch.ones(2, 3)
BAD_GRADS: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, r"grads: expected at least one task, found none \(T=0\)"),
    (torch.empty(0, 3), ValueError, r"grads: .*T=0"),
    (torch.ones(3), ValueError, r"grads: expected a \[T, N\] tensor"),
    (G.int(), TypeError, r"grads: expected dtype .* found torch.int32"),
    (list(G.to(torch.complex64)), TypeError, r"grads\[0\]: expected dtype .* found torch.complex64"),
    (torch.torch.eye(3, dtype=torch.float64).to_sparse(), ValueError, r"grads: expected a dense tensor"),
    ([G[0], G[0].to("meta")], ValueError, r"grads\[1\]: expected device cpu .* found meta"),
    ([G[0], G], ValueError, r"grads\[1\]: expected shape \[3\] .* found \[2, 3\]"),
    ([G[0], [G[1]]], TypeError, r"grads: some tasks are given as tensors and some as lists"),
    ([None, None], ValueError, r"found only None"),
    ("ab", TypeError, r"grads\[0\]\[0\]: expected a tensor or None, found str"),
]


@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS)
def test_bad_gradients(grads: Any, error: type[Exception], message: str) -> None:
    calls: list[Callable[[], Any]] = [lambda: gs.gram(grads), lambda: gs.combine(grads, torch.ones(2))]
    calls += [lambda method=method: gs.aggregate(grads, method) for method in METHODS]
    calls.append(lambda: gs.aggregate(grads, out=torch.zeros(3)))
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), ValueError, r"weights: expected a tensor of shape \[2\], found \[3\]"),
        (torch.ones(2, 1), ValueError, r"weights: expected a tensor of shape \[2\], found \[2, 1\]"),
        (torch.ones(()), ValueError, r"weights: expected a tensor of shape \[2\], found \[\]"),
        ([1.0, 1.0], ValueError, r"weights: expected a tensor of shape \[2\], found list"),
        (torch.ones(2, dtype=torch.int64), TypeError, r"weights: expected a floating dtype, found torch.int64"),
        (torch.ones(2, dtype=torch.complex64), TypeError, r"weights: expected a floating dtype, found torch.complex64"),
        (torch.ones(2, device="meta"), ValueError, r"weights: expected device cpu like the gradients, found meta"),
    ],
)
def test_bad_weights(weights: Any, error: type[Exception], message: str) -> None:
    for form in (G, list(G), [[g] for g in G]):
        with pytest.raises(error, match=message):
            gs.combine(form, weights)


BAD_OUT: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(4), ValueError, r"out: expected shape \[3\], found \[4\]"),
    (torch.zeros(1, 3), ValueError, r"out: expected shape \[3\], found \[1, 3\]"),
    (torch.zeros(3, dtype=torch.int32), TypeError, r"out: expected dtype float64, .*found torch.int32"),
    (torch.zeros(3, dtype=torch.complex64), TypeError, r"out: expected dtype .*found torch.complex64"),
    (torch.zeros(3, device="meta"), ValueError, r"out: expected device cpu like the gradients, found meta"),
    (
        torch.zeros(1).expand(3),
        ValueError,
        r"out: expected elements with memory of their own, found strides \(0,\)",
    ),
    (torch.zeros(3).to_sparse(), ValueError, r"out: expected a dense tensor, found layout torch.sparse_coo"),
    ([torch.zeros(3)], TypeError, r"out: expected a tensor, found list"),
    (3.0, TypeError, r"out: expected a tensor, found float"),
]


@pytest.mark.parametrize(("out", "error", "message"), BAD_OUT)
def test_bad_out(out: Any, error: type[Exception], message: str) -> None:
    for call in (
        lambda: gs.combine(G, torch.ones(2), out=out),
        lambda: gs.combine(list(G), torch.ones(2), out=out),
        lambda: gs.aggregate(G, out=out),
        lambda: gs.aggregate(list(G), "sum", out=out),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([torch.zeros(3)], ValueError, r"out: expected 2 tensors like one task's gradient, found 1"),
        (torch.zeros(2, 3), TypeError, r"out: expected a list of tensors like one task's gradient, found Tensor"),
        (None, None, ""),
        (7, TypeError, r"out: expected a list of tensors like one task's gradient, found int"),
        ([torch.zeros(3), torch.zeros(4)], ValueError, r"out\[1\]: expected shape \[3\], found \[4\]"),
        ([torch.zeros(3), None], TypeError, r"out\[1\]: expected a tensor, found NoneType"),
        ([torch.zeros(3), torch.zeros(3).int()], TypeError, r"out\[1\]: expected dtype .* found torch.int32"),
    ],
)
def test_bad_lists_of_out(out: Any, error: type[Exception] | None, message: str) -> None:
    grads = [[G[0], G[1]], [None, G[0]]]
    for call in (lambda: gs.combine(grads, torch.ones(2), out=out), lambda: gs.aggregate(grads, "mean", out=out)):
        if error is None:
            assert len(call()) == 2
        else:
            with pytest.raises(error, match=message):
                call()


@pytest.mark.parametrize(
    ("gram", "error", "message"),
    [
        ([[1.0]], TypeError, r"gram: expected a \[T, T\] float64 tensor, found list"),
        (torch.eye(2), TypeError, r"gram: expected float64 .*found torch.float32"),
        (torch.eye(2, dtype=torch.int64), TypeError, r"gram: expected float64 .*found torch.int64"),
        (torch.ones(2, 3, dtype=torch.float64), ValueError, r"gram: expected shape \[T, T\] with T >= 1, found \[2, 3\]"),
        (torch.ones(4, dtype=torch.float64), ValueError, r"gram: expected shape \[T, T\] .*found \[4\]"),
        (torch.ones(0, 0, dtype=torch.float64), ValueError, r"gram: expected shape \[T, T\] with T >= 1, found \[0, 0\]"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_gram(method: str, gram: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(gram, method)


CYCLE = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
BAD_METHODS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("pcgradd", {}, ValueError, r"method: did you mean 'pcgrad'\? Expected one of .*mean.*pcgrad.*sum.*, found 'pcgradd'"),
    (None, {}, TypeError, r"method: expected a method's name or a built method, found None"),
    (["pcgrad"], {}, TypeError, r"method: expected a method's name or a built method, found \['pcgrad'\]"),
    ("pcgrad", {"orders": 1}, TypeError, r"method 'pcgrad' has no option 'orders'; it takes order, include_self, reduction, seed"),
    ("sum", {"seed": 1}, TypeError, r"method 'sum' has no option 'seed'; it takes no options"),
    ("pcgrad", {"order": "descending"}, ValueError, r"order: expected 'random', 'ascending' or .*, found 'descending'"),
    (
        "pcgrad",
        {"order": [[0, 1, 2]] * 3},
        ValueError,
        r"order: expected 'random', 'ascending' or an int64 tensor \[T, T\], found \[\[",
    ),
    (
        "pcgrad",
        {"order": CYCLE.double()},
        ValueError,
        r"order: expected an int64 tensor \[T, T\], found torch.float64 of shape \[3, 3\]",
    ),
    ("pcgrad", {"order": CYCLE[0]}, ValueError, r"order: expected an int64 tensor \[T, T\], found torch.int64 of shape \[3\]"),
    ("pcgrad", {"order": CYCLE[:2]}, ValueError, r"order: .* found torch.int64 of shape \[2, 3\]"),
    ("pcgrad", {"order": CYCLE + 1}, ValueError, r"order: expected every row to be a permutation of 0..2, found \[\[1, 2, 3\]"),
    ("pcgrad", {"order": torch.zeros_like(CYCLE)}, ValueError, r"order: expected every row to be a permutation of 0..2"),
    ("pcgrad", {"order": CYCLE - 5}, ValueError, r"order: expected every row to be a permutation of 0..2"),
    (
        "pcgrad",
        {"order": torch.eye(2, dtype=torch.float64).long()},
        ValueError,
        r"order: expected every row to be a permutation|order: expected shape \[3, 3\]",
    ),
    (
        "pcgrad",
        {"order": torch.tensor([[0, 1], [1, 0]])},
        ValueError,
        r"order: expected shape \[3, 3\] for 3 tasks, found \[2, 2\]",
    ),
    ("pcgrad", {"reduction": "max"}, ValueError, r"reduction: expected one of 'sum', 'mean', found 'max'"),
    ("pcgrad", {"reduction": None}, ValueError, r"reduction: expected one of 'sum', 'mean', found None"),
    ("pcgrad", {"seed": "x"}, TypeError, r"seed: expected an integer or None, found str"),
    ("pcgrad", {"seed": 0.5}, TypeError, r"seed: expected an integer or None, found float"),
    ("pcgrad", {"seed": 2**63}, ValueError, r"seed: expected an integer of 64 bits, found 9223372036854775808"),
    (build("sum"), {"seed": 1}, TypeError, r"options \['seed'\] cannot change the given Sum; build it with them"),
]


@pytest.mark.parametrize(("method", "given", "error", "message"), BAD_METHODS)
def test_bad_methods_and_options(method: Any, given: dict[str, Any], error: type[Exception], message: str) -> None:
    K, rows = torch.eye(3, dtype=torch.float64), torch.ones(3, 4)
    for call in (
        lambda: gs.weights(K, method, **given),
        lambda: gs.aggregate(rows, method, **given),
        lambda: gs.aggregate(list(rows), method, **given),
        lambda: gs.aggregate(rows, method, out=torch.zeros(4), **given),
    ):
        with pytest.raises(error, match=message):
            call()


def test_an_error_leaves_everything_as_it_was() -> None:
    rows = [torch.ones(3), torch.ones(3), torch.ones(4)]
    out = torch.full((3,), 7.0)
    with pytest.raises(ValueError, match=r"grads\[2\]"):
        gs.aggregate(rows, out=out)
    with pytest.raises(ValueError, match="order"):
        gs.aggregate(rows[:2], out=out, order=CYCLE)
    assert out.tolist() == [7.0, 7.0, 7.0]
    assert out._version == 0


# --- memory that is shared -----


def overlapping(case: str) -> tuple[Any, Any]:
    """(grads, out) whose memory meets in a way that would change gradients while they are read."""
    buffer, square, piece = torch.randn(20_000), torch.randn(6, 6), torch.empty(5)
    return {
        "rows of a matrix": (buffer[:15_000].view(3, 5000), buffer[1:5001]),
        "rows of a small matrix": (buffer[:300].view(3, 100), buffer[50:150]),
        "before the first row": (buffer[50:350].view(3, 100), buffer[:100]),
        "a transposed row": ([square, torch.randn(6, 6)], square.T),
        "an output twice": ([[torch.ones(5), torch.ones(5)], [torch.ones(5), torch.ones(5)]], [piece, piece]),
        "a row of another position": ([[square[0], torch.ones(6)], [torch.ones(6), torch.ones(6)]], [torch.empty(6), square[0]]),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "rows of a matrix",
        "rows of a small matrix",
        "before the first row",
        "a transposed row",
        "an output twice",
        "a row of another position",
    ],
)
def test_an_output_that_overlaps_is_refused(case: str) -> None:
    grads, out = overlapping(case)
    with pytest.raises(ValueError, match=r"out.*: expected memory of its own"):
        gs.aggregate(grads, "pcgrad", out=out)
    with pytest.raises(ValueError, match=r"out.*: expected memory of its own"):
        gs.combine(grads, torch.ones(len(grads), dtype=torch.float64), out=out)


def test_an_output_that_overlaps_itself_is_refused() -> None:
    out = torch.empty(7).as_strided((4, 4), (1, 1))
    with pytest.raises(ValueError, match="out: expected elements with memory of their own"):
        gs.aggregate([torch.ones(4, 4), torch.ones(4, 4)], "sum", out=out)


def test_interleaved_memory_is_no_overlap() -> None:
    columns = torch.randn(50, 4)
    expected = columns[:, :3].sum(1)
    gs.aggregate([columns[:, 0], columns[:, 1], columns[:, 2]], "sum", out=columns[:, 3])
    torch.testing.assert_close(columns[:, 3], expected)


def test_the_default_device_changes_nothing() -> None:
    G = torch.randn(4, 50)
    expected = [gs.aggregate(G, "pcgrad", seed=s) for s in range(5)]
    with torch.device("meta"):
        found = [gs.aggregate(G, "pcgrad", out=torch.empty(50, device="cpu"), seed=s) for s in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len({tuple(g.tolist()) for g in expected}) > 1, "the seeds must matter"


def test_forward_mode_is_refused() -> None:
    with forward_ad.dual_level():
        G = forward_ad.make_dual(torch.randn(2, 5), torch.randn(2, 5))
        with pytest.raises(NotImplementedError, match="forward-mode differentiation is not supported"):
            gs.gram(G)
        with pytest.raises(NotImplementedError, match="forward-mode differentiation is not supported"):
            gs.combine(G, torch.ones(2, dtype=torch.float64))


def test_tasks_of_different_types() -> None:
    """The result holds every task's precision whatever their order, and so do derivatives."""
    a, b = torch.randn(30, dtype=torch.bfloat16), torch.randn(30, dtype=torch.float64)
    for pair in ([a, b], [b, a]):
        combined = gs.combine(pair, torch.ones(2, dtype=torch.float64))
        assert combined.dtype is torch.float64
        torch.testing.assert_close(combined, a.double() + b, rtol=1e-15, atol=1e-15)
    x = b.clone().requires_grad_()
    gs.gram([a.clone().requires_grad_(), x])[1, 1].backward()
    torch.testing.assert_close(x.grad, 2 * b, rtol=1e-15, atol=0)
