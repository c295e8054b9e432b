"""Operators of every sample by itself, compiled and reference, against a loop over samples; and ``samples=True`` of functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ops.sample_batches import BATCHES, algorithm_1, batch_of, exact_grams, one
from ops.samples import Sample, maker
from tolerances import DTYPES, assert_combined_close, assert_gram_close
from torch import Tensor

import gradsurgery as gs
from gradsurgery import ops
from gradsurgery.ops import samples as reference

OPS = torch.ops.gradsurgery
TASKS = (*range(1, 10), 16, 17, 31, 32, 33)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights_of(batch: int, tasks: int, device: Any = "cpu") -> Tensor:
    return maker(torch.float64, device, 3)(batch, tasks)


def assert_grams_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    for K, exact in zip(actual, expected, strict=True):
        assert_gram_close(K, exact, dtype)


def assert_combined(out: list[Tensor], given: Sample, w: Tensor, before: list[Tensor] | None = None) -> None:
    """Every sample of every position against its weighted sum in float64."""
    for p, target in enumerate(out):
        exact = torch.zeros_like(target, dtype=torch.float64) if before is None else before[p].double()
        magnitude = exact.abs()
        for t, row in enumerate(given.rows(p)):
            if row is not None:
                part = w[:, t].reshape(-1, *[1] * (row.dim() - 1)) * row.double()
                exact, magnitude = exact + part, magnitude + part.abs()
        assert_combined_close(target, exact, magnitude)


def check(given: Sample, dtype: torch.dtype, device: torch.device) -> None:
    B, T = batch_of(given), given.tasks
    exact = exact_grams(given)
    K = OPS.gram_samples(given.grads, T, given.stacked)
    assert_grams_close(K, exact, dtype)
    assert_grams_close(reference.gram_samples(given.grads, T, given.stacked), exact, torch.float64)
    if device.type == "cpu":
        for b in range(B):
            alone = one(given, b)
            assert torch.equal(K[b], OPS.gram(alone.grads, T, alone.stacked))

    w = weights_of(B, T, device)
    for run in (OPS.combine_samples_, reference.combine_samples_):
        out = given.empty()
        run(out, given.grads, w, given.stacked)
        assert_combined(out, given, w)
        before = [target.clone() for target in out]
        run(out, given.grads, w, given.stacked, True)
        assert_combined(out, given, w, before)

    out = given.empty()
    fused_K, fused_w = OPS.pcgrad_samples_(out, given.grads, T, given.stacked)
    assert torch.equal(fused_K, K)
    if B > 0:
        assert torch.equal(fused_w, OPS.pcgrad_weights(K))
    assert_combined(out, given, fused_w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", BATCHES)
def test_forms(form: str, dtype: torch.dtype, device: torch.device) -> None:
    for tasks, batch in ((1, 3), (2, 1), (3, 0), (5, 3), (5, 65)):
        check(BATCHES[form](maker(dtype, device), tasks, batch), dtype, device)


@pytest.mark.parametrize("tasks", TASKS)
def test_task_counts(tasks: int, device: torch.device) -> None:
    for dtype in DTYPES:
        check(Sample([maker(dtype, device)(tasks, 3, 101)], tasks, stacked=True), dtype, device)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 1023, 1024, 1025, 65_537])
def test_sizes(size: int, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(Sample([maker(dtype, device)(3, 2, size)], 3, stacked=True), dtype, device)


def test_types_may_differ(device: torch.device) -> None:
    """Between tasks, between positions, and from out's."""
    makers = [maker(dtype, device, seed) for seed, dtype in enumerate(DTYPES)]
    rows = [makers[(t + p) % 4](3, *shape) for t in range(5) for p, shape in enumerate(((13,), (4, 5), ()))]
    given = Sample(list(rows), 5)
    assert_grams_close(OPS.gram_samples(given.grads, 5), exact_grams(given), torch.float32)
    for dtype in DTYPES:
        w, out = weights_of(3, 5, device), given.empty(dtype)
        OPS.combine_samples_(out, given.grads, w)
        assert_combined(out, given, w)


@pytest.mark.parametrize("tasks", [2, 3, 8, 9, 33])
def test_the_fused_operator_is_algorithm_1_on_every_sample(tasks: int, device: torch.device) -> None:
    G = maker(torch.float64, device)(tasks, 4, 2 * tasks) - 0.3
    for run in (OPS.pcgrad_samples_, reference.pcgrad_samples_):
        out = torch.empty_like(G[0])
        run([out], [G], tasks, True)
        torch.testing.assert_close(out, algorithm_1(G), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tasks", [3, 33])
def test_samples_draw_as_groups_do(tasks: int, device: torch.device) -> None:
    G = maker(torch.float32, device)(tasks, 5, 40)
    for run in (OPS.pcgrad_samples_, reference.pcgrad_samples_):
        key, of_groups = (torch.tensor([7, 2**33], device=device) for _ in range(2))
        K, w = run([torch.empty_like(G[0])], [G], tasks, True, None, key, True, 0.5)
        torch.testing.assert_close(w, OPS.pcgrad_weights(K, None, of_groups, True, 0.5), rtol=1e-9, atol=0)
        assert key.tolist() == of_groups.tolist() == [7, 2**33 + 1]
        order = torch.stack([torch.randperm(tasks) for _ in range(tasks)]).to(device)
        K, w = run([torch.empty_like(G[0])], [G], tasks, True, order)
        torch.testing.assert_close(w, OPS.pcgrad_weights(K, order), rtol=1e-9, atol=0)


def test_an_empty_batch_takes_a_step(device: torch.device) -> None:
    for run in (OPS.pcgrad_samples_, reference.pcgrad_samples_):
        key, out = torch.tensor([7, 1], device=device), torch.empty(0, 4, device=device)
        K, w = run([out], [torch.empty(3, 0, 4, device=device)], 3, True, None, key)
        assert (K.shape, w.shape, key.tolist()) == ((0, 3, 3), (0, 3), [7, 2])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("bad", [0, 2, 3])
@pytest.mark.parametrize("tasks", [3, 33])
def test_a_bad_number_stays_in_its_sample(tasks: int, bad: int, value: float, device: torch.device) -> None:
    G = maker(torch.float32, device)(tasks, 4, 50)
    others = [b for b in range(4) if b != bad]
    for run in (OPS.pcgrad_samples_, reference.pcgrad_samples_):
        clean, key = torch.empty_like(G[0]), torch.tensor([1, 2], device=device)
        run([clean], [G], tasks, True, None, key)
        broken = G.clone()
        broken[1, bad, 7] = value
        out, key = torch.empty_like(G[0]), torch.tensor([1, 2], device=device)
        K, w = run([out], [broken], tasks, True, None, key)
        assert key.tolist() == [1, 2]
        assert w[bad].isnan().all()
        assert out[bad].isnan().all()
        assert K[others].isfinite().all()
        assert torch.equal(out[others], clean[others])


def test_the_order_of_samples_is_the_order_of_results(device: torch.device) -> None:
    """To the bit, whatever the alignment of a sample's rows is."""
    for tasks in (2, 5, 8, 12, 33):
        G = maker(torch.float32, device)(tasks, 9, 101)
        turn = torch.randperm(9)
        first, second = torch.empty_like(G[0]), torch.empty_like(G[0])
        K, w = OPS.pcgrad_samples_([first], [G], tasks, True)
        turned_K, turned_w = OPS.pcgrad_samples_([second], [G[:, turn].contiguous()], tasks, True)
        assert torch.equal(turned_K, K[turn])
        assert torch.equal(turned_w, w[turn])
        assert torch.equal(second, first[turn])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("form", ["features", "channels_last", "layouts_differ"])
def test_out_may_be_a_gradient(form: str, accumulate: bool, device: torch.device) -> None:
    apart, aliased = (BATCHES[form](maker(torch.float32, device), 4, 3) for _ in range(2))
    like, target = apart.grads[2], aliased.grads[2]
    assert like is not None
    assert target is not None
    out = like.clone()
    K, w = OPS.pcgrad_samples_([out], apart.grads, 4, False, None, None, False, 1.0, accumulate)
    same_K, same_w = OPS.pcgrad_samples_([target], aliased.grads, 4, False, None, None, False, 1.0, accumulate)
    assert torch.equal(target, out)
    assert torch.equal(same_K, K)
    assert torch.equal(same_w, w)


def test_threads_and_runs_do_not_change_a_bit() -> None:
    G = maker(torch.float32)(5, 300, 700)
    results = []
    for count in (1, 2, 2, 3):
        with threads(count):
            out = torch.empty_like(G[0])
            results.append((*OPS.pcgrad_samples_([out], [G], 5, True, None, torch.tensor([1, 2])), out))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.skipif(ops.build_info()["cpu"] is False, reason="gradsurgery is installed without compiled code")
def test_what_would_read_wild_memory_is_refused() -> None:
    rows, w = [torch.ones(3, 4), torch.ones(2, 4)], torch.ones(3, 2, dtype=torch.float64)
    for grads in (rows, [torch.ones(()), torch.ones(())]):
        with pytest.raises(RuntimeError, match=r"tensors \[B, ...\] of one B"):
            OPS.gram_samples(grads, 2)
    with pytest.raises(RuntimeError, match=r"tensors \[B, ...\] of one B"):
        OPS.combine_samples_([torch.ones(2, 4)], [torch.ones(3, 4)] * 2, w)
    for weights in (w[:2], w[0]):
        with pytest.raises(RuntimeError, match=r"weights must be \[B, T\]"):
            OPS.combine_samples_([torch.ones(3, 4)], [torch.ones(3, 4)] * 2, weights)


# --- derivatives ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
def test_gradcheck(stacked: bool, device: torch.device) -> None:
    make = maker(torch.float64, device, requires_grad=True)
    grads = [make(3, 2, 2), make(3, 2)] if stacked else [make(2, 2), None, None, make(2), make(2, 2), make(2)]
    present, w = [g for g in grads if g is not None], weights_of(2, 3, device).requires_grad_()

    def function(w: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = list(tensors)
        entries = [None if g is None else left.pop(0) for g in grads]
        return OPS.gram_samples(entries, 3, stacked), *OPS.combine_samples(entries, w, stacked)

    assert torch.autograd.gradcheck(function, (w, *present))
    assert torch.autograd.gradgradcheck(function, (w, *present))


# --- functions --------------------------------------------------------------------------------------------------------------------


def test_the_functions_are_a_loop_over_samples(device: torch.device) -> None:
    make = maker(torch.float32, device)
    grads: list[Any] = [[make(4, 3), None, make(4)], None, [make(4, 3), None, None]]
    K = gs.gram(grads, samples=True)
    out = gs.aggregate(grads, "mgda", samples=True)
    assert isinstance(out, list)
    assert out[1] is None
    w = gs.weights(K, "mgda", losses=[1.0, None, 1.0])
    combined = gs.combine(grads, w, samples=True)
    targets = [make(4, 3), make(4, 7), make(4)]
    assert gs.combine(grads, w, out=targets, samples=True) is targets
    assert not targets[1].any()
    for b in range(4):
        alone = [None if row is None else [None if g is None else g[b] for g in row] for row in grads]
        torch.testing.assert_close(K[b], gs.gram(alone), rtol=1e-5, atol=1e-6)
        expected = gs.aggregate(alone, "mgda")
        for p in (0, 2):
            torch.testing.assert_close(out[p][b], expected[p], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(combined[p][b], expected[p], rtol=1e-4, atol=1e-6)
            assert torch.equal(targets[p], combined[p])


def test_a_matrix_of_samples(device: torch.device) -> None:
    G = maker(torch.float64, device)(3, 5, 8)
    out = torch.empty_like(G[0])
    assert gs.aggregate(G, order="ascending", samples=True, out=out) is out
    torch.testing.assert_close(out, algorithm_1(G), rtol=1e-9, atol=1e-9)
    K = gs.gram(G, samples=True)
    torch.testing.assert_close(K.sum(0), gs.gram(G), rtol=1e-12, atol=1e-12)
    assert torch.equal(gs.combine(G, gs.weights(K, order="ascending"), samples=True), out)


def test_what_the_functions_refuse() -> None:
    G = torch.ones(2, 3, 4)
    for call in (gs.gram, gs.aggregate):
        with pytest.raises(ValueError, match=r"groups: expected None with samples=True"):
            call(G, groups=["a"], samples=True)
        with pytest.raises(
            ValueError, match=r"grads\[...\]\[1\]: expected 3 samples in the first dimension.* found a shape of \[2\]"
        ):
            call([[torch.ones(3, 4), torch.ones(2)]] * 2, samples=True)
        with pytest.raises(ValueError, match=r"grads: expected a batch as first dimension"):
            call([torch.ones(())] * 2, samples=True)
    with pytest.raises(ValueError, match=r"against: expected None with samples=True"):
        gs.gram(G, against=G, samples=True)
    with pytest.raises(ValueError, match=r"weights: expected a tensor of shape \[3, 2\], found \[2\]"):
        gs.combine(G, torch.ones(2), samples=True)
    for method in ("dbmtl", "gradvac", "modo"):
        with pytest.raises(ValueError, match=rf"samples: expected a method whose weights K alone decides .* found {method!r}"):
            gs.aggregate(G, method, samples=True)
