"""Surgery by sample on the emulated device: every count of tasks, windows of rows, alignments, types; and the launch's plan."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Device, Emulator, placed, untouched_around
from ops.sample_batches import BATCHES, algorithm_1, batch_of, exact_grams
from ops.samples import Sample, maker
from tolerances import DTYPES, TOLERANCES
from torch import Tensor

from gradsurgery.ops import samples as reference


def assert_grams(K: Tensor, given: Sample, tolerance: float) -> None:
    exact = exact_grams(given)
    norms = exact.diagonal(dim1=1, dim2=2).sqrt()
    assert K.dtype == torch.float64
    assert torch.equal(K, K.mT)
    assert bool(((K - exact).abs() <= tolerance * norms[:, :, None] * norms[:, None]).all())


def assert_combined(out: list[Tensor], given: Sample, w: Tensor, before: list[Tensor] | None = None) -> None:
    for p, target in enumerate(out):
        exact = torch.zeros_like(target, dtype=torch.float64) if before is None else before[p].double()
        magnitude = exact.abs()
        for t, row in enumerate(given.rows(p)):
            if row is not None:
                part = w[:, t].reshape(-1, *[1] * (row.dim() - 1)) * row.double()
                exact, magnitude = exact + part, magnitude + part.abs()
        double = torch.float64 in {target.dtype, *(g.dtype for g in given.grads if g is not None)}
        summing = TOLERANCES[torch.float64 if double else torch.float32].combine
        smallest = torch.finfo(target.dtype).smallest_normal * torch.finfo(target.dtype).eps
        allowed = TOLERANCES[target.dtype].rounding * exact.abs() + summing * magnitude + smallest
        assert bool(((target.double() - exact).abs() <= allowed).all())


def check(emulator: Emulator, given: Sample, tolerance: float, out_dtype: torch.dtype | None = None) -> None:
    """K is the same alone and fused; so is what is combined."""
    ops, T = emulator.operators, given.tasks
    K = ops.gram_samples(given.grads, T, given.stacked)
    assert_grams(K, given, tolerance)
    out, again = given.empty(out_dtype), given.empty(out_dtype)
    fused_K, w = ops.pcgrad_samples_(out, given.grads, T, given.stacked)
    assert torch.equal(fused_K, K)
    if batch_of(given) > 0:
        assert torch.equal(w, ops.pcgrad_weights(K))
    assert_combined(out, given, w)
    ops.combine_samples_(again, given.grads, w, given.stacked)
    assert all(torch.equal(a, b) for a, b in zip(again, out, strict=True))
    ops.combine_samples_(again, given.grads, w, given.stacked, True)
    assert_combined(again, given, w, out)


def tolerance_of(dtype: torch.dtype) -> float:
    return TOLERANCES[dtype].gram


@pytest.mark.parametrize("tasks", range(1, 34))
def test_task_counts(emulator: Emulator, tasks: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16) if tasks % 4 == 1 else (torch.float32,):
        check(emulator, Sample([maker(dtype)(tasks, 3, 45)], tasks, stacked=True), tolerance_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", BATCHES)
def test_forms(emulator: Emulator, form: str, dtype: torch.dtype) -> None:
    for tasks, batch in ((1, 3), (2, 1), (3, 0), (5, 3), (9, 2)):
        check(emulator, BATCHES[form](maker(dtype), tasks, batch), tolerance_of(dtype))


def test_many_samples(emulator: Emulator) -> None:
    check(emulator, Sample([maker(torch.float32)(4, 65, 24)], 4, stacked=True), tolerance_of(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "size"), [(2, 12_001), (5, 4_099), (12, 2_048), (34, 700)])
def test_samples_that_do_not_fit_shared_memory(emulator: Emulator, tasks: int, size: int, dtype: torch.dtype) -> None:
    """Windows of the rows; the second position begins in the memory of the first."""
    given = Sample([maker(dtype)(tasks, 2, size), maker(dtype, seed=1)(tasks, 2, 9)], tasks, stacked=True)
    with emulator.device(Device(shared_block=48 << 10)):
        check(emulator, given, tolerance_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "size"), [(2, 5_001), (5, 2_500)])
def test_samples_for_which_more_shared_memory_is_asked(emulator: Emulator, tasks: int, size: int, dtype: torch.dtype) -> None:
    check(emulator, Sample([maker(dtype)(tasks, 2, size)], tasks, stacked=True), tolerance_of(dtype))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_may_differ(emulator: Emulator, out_dtype: torch.dtype) -> None:
    makers = [maker(dtype, seed=seed) for seed, dtype in enumerate(DTYPES)]
    for narrow in (makers, makers[1:]):
        rows = [narrow[(t + p) % len(narrow)](3, *shape) for t in range(5) for p, shape in enumerate(((16,), (4, 5), ()))]
        check(emulator, Sample(list(rows), 5), tolerance_of(torch.float32), out_dtype)
        check(emulator, Sample([narrow[p](4, 3, 24) for p in range(3)], 4, stacked=True), tolerance_of(torch.float32), out_dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 17])
def test_alignments(emulator: Emulator, size: int, dtype: torch.dtype) -> None:
    """Rows and outputs that begin anywhere: nothing beside them is read or written, and K does not depend on it."""
    G = maker(dtype)(3, 4, size)
    expected: Tensor | None = None
    for row_offset in range(0, 9, 1 if size == 17 else 2):
        for other_offset in (row_offset, row_offset + 1):
            rows = [placed(g, other_offset if t == 1 else row_offset, dtype) for t, g in enumerate(G)]
            out = placed(torch.zeros(4 * size), row_offset + other_offset, dtype)
            entries: list[Tensor | None] = [row.view(4, size) for row in rows]
            K, w = emulator.operators.pcgrad_samples_([out.view(4, size)], entries, 3)
            expected = K if expected is None else expected
            assert torch.equal(K, expected)
            assert_combined([out.view(4, size)], Sample(entries, 3), w)
            assert untouched_around(out)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("size", [40, 12_001])
def test_out_may_be_a_gradient(emulator: Emulator, size: int, accumulate: bool) -> None:
    G = maker(torch.float32)(3, 2, size)
    expected, aliased = G[1].clone(), list(G.clone())
    emulator.operators.pcgrad_samples_([expected], list(G), 3, False, None, None, False, 1.0, accumulate)
    emulator.operators.pcgrad_samples_([aliased[1]], list(aliased), 3, False, None, None, False, 1.0, accumulate)
    assert torch.equal(aliased[1], expected)


@pytest.mark.parametrize("tasks", [2, 3, 8, 9, 32, 33])
def test_algorithm_1_on_every_sample(emulator: Emulator, tasks: int) -> None:
    G = maker(torch.float64)(tasks, 3, 2 * tasks) - 0.3
    out = torch.empty_like(G[0])
    emulator.operators.pcgrad_samples_([out], [G], tasks, True)
    torch.testing.assert_close(out, algorithm_1(G), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tasks", [3, 9, 33])
def test_orders_and_a_bad_sample(emulator: Emulator, tasks: int) -> None:
    """Drawn as by the reference, for each sample its own; a K that is not finite keeps the key, and touches no other sample."""
    ops, G = emulator.operators, maker(torch.float32)(tasks, 4, 33)
    out, plain = torch.empty_like(G[0]), torch.empty_like(G[0])
    key, plain_key = (torch.tensor([5, 2**33 + 1]) for _ in range(2))
    K, w = ops.pcgrad_samples_([out], [G], tasks, True, None, key, True, 0.5)
    _, plain_w = reference.pcgrad_samples_([plain], [G], tasks, True, None, plain_key, True, 0.5)
    assert key.tolist() == plain_key.tolist() == [5, 2**33 + 2]
    torch.testing.assert_close(w, plain_w, rtol=1e-4, atol=1e-5)
    assert torch.equal(w, ops.pcgrad_weights(K, None, torch.tensor([5, 2**33 + 1]), True, 0.5))

    order = torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    K, given_w = ops.pcgrad_samples_([torch.empty_like(out)], [G], tasks, True, order)
    assert torch.equal(given_w, ops.pcgrad_weights(K, order))
    order[1, 1] = tasks
    _, refused = ops.pcgrad_samples_([torch.empty_like(out)], [G], tasks, True, order)
    assert refused.isnan().all()

    broken, key = G.clone(), torch.tensor([5, 2**33 + 1])
    broken[1, 2, 7] = torch.nan
    clean = torch.empty_like(out)
    K, bad_w = ops.pcgrad_samples_([clean], [broken], tasks, True, None, key, True, 0.5)
    assert key.tolist() == [5, 2**33 + 1]
    assert bad_w[2].isnan().all()
    assert clean[2].isnan().all()
    others = [0, 1, 3]
    assert torch.equal(bad_w[others], w[others])
    assert torch.equal(clean[others], out[others])


def test_an_empty_batch_takes_a_step(emulator: Emulator) -> None:
    key, out = torch.tensor([7, 1]), torch.empty(0, 4)
    K, w = emulator.operators.pcgrad_samples_([out], [torch.empty(3, 0, 4)], 3, True, None, key)
    assert (K.shape, w.shape, key.tolist()) == ((0, 3, 3), (0, 3), [7, 2])


@pytest.mark.parametrize("tasks", [2, 7, 12, 34])
def test_the_order_of_samples_is_the_order_of_results(emulator: Emulator, tasks: int) -> None:
    G = maker(torch.float32)(tasks, 5, 101)
    turn = torch.randperm(5)
    first, second = torch.empty_like(G[0]), torch.empty_like(G[0])
    K, w = emulator.operators.pcgrad_samples_([first], [G], tasks, True)
    turned_K, turned_w = emulator.operators.pcgrad_samples_([second], [G[:, turn].contiguous()], tasks, True)
    assert torch.equal(turned_K, K[turn])
    assert torch.equal(turned_w, w[turn])
    assert torch.equal(second, first[turn])


@pytest.mark.parametrize(("tasks", "size"), [(2, 300), (5, 2_100), (12, 64), (34, 33)])
def test_twenty_schedules_give_the_same_bits(emulator: Emulator, tasks: int, size: int) -> None:
    G, order = maker(torch.bfloat16)(tasks, 3, size), torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    results = []
    for seed in range(21):
        out = torch.empty_like(G[0])
        with emulator.schedule(seed):
            results.append((*emulator.operators.pcgrad_samples_([out], [G], tasks, True, order), out))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_many_tasks(emulator: Emulator) -> None:
    """A panel of tiles a block, and windows of a few words."""
    check(emulator, Sample([maker(torch.float32)(200, 1, 70)], 200, stacked=True), tolerance_of(torch.float32))
    with pytest.raises(RuntimeError, match="at most 1024 tasks"):
        emulator.operators.gram_samples([torch.ones(1025, 1, 1)], 1025, True)


@pytest.mark.parametrize("tasks", [1, 8, 9, 32, 33, 1024])
@pytest.mark.parametrize("words", [0, 1, 100, 10_000, 2**31 - 1])
def test_plan(emulator: Emulator, tasks: int, words: int) -> None:
    """A sample is read once where it fits what a block may have; else windows of a word at least, in what every device has."""
    for fused in {False, tasks <= 32}:
        for most in (0, 99 * 1024, 227 * 1024):
            window, shared, beside, warps = emulator.sample_plan(tasks, words, fused, most)
            assert 1 <= warps <= 10
            assert beside + 16 * tasks <= 40 * 1024
            whole = 16 * tasks * words + beside
            if whole <= max(most, 40 * 1024):
                assert (window, shared) == (-1, whole)
            else:
                assert window >= 1
                assert shared == 16 * tasks * window + beside <= 40 * 1024
