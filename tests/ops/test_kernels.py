"""The operators, compiled where they are, against the reference and against plain float64 products of full matrices."""

from __future__ import annotations

import pytest
import torch
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from tolerances import DTYPES, assert_combined_close, assert_gram_close
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops import reference

OPS = torch.ops.gradsurgery
SIZES = (1, 7, 8, 9, 255, 1023, 1024, 1025, 65535, 65536, 65537, 200_003)
TASKS = (*range(1, 10), 16, 17, 33)


def test_the_compiled_kernels_are_what_is_tested() -> None:
    info = gs.build_info()
    assert info["cpu"] is True, f"these tests need the compiled CPU kernels: {info['missing']}"


def check(given: Sample, dtype: torch.dtype, out_dtype: torch.dtype | None = None) -> None:
    """gram, combine_ and accumulation of one sample."""
    G = given.matrix()  # [T, N]
    K = OPS.gram(given.grads, given.tasks, given.stacked)
    assert_gram_close(K, G @ G.T, dtype)
    assert_gram_close(K, reference.gram(given.grads, given.tasks, given.stacked), dtype)

    w = weights_of(given.tasks, G.device)
    out, expected = given.empty(out_dtype), given.empty(out_dtype)
    OPS.combine_(out, given.grads, w, given.stacked)
    reference.combine_(expected, given.grads, w, given.stacked)
    for p, (target, plain) in enumerate(zip(out, expected, strict=True)):
        rows = [row.double() for row in given.rows(p) if row is not None]
        present = [w[t] for t, row in enumerate(given.rows(p)) if row is not None]
        if not rows:
            assert not target.any(), "a position that no task reaches must be zeroed"
            continue
        exact = sum(x * row for x, row in zip(present, rows, strict=True))
        magnitude = sum((x * row).abs() for x, row in zip(present, rows, strict=True))
        assert isinstance(exact, Tensor)
        assert isinstance(magnitude, Tensor)
        assert_combined_close(target, exact, magnitude)
        assert_combined_close(plain, exact, magnitude)

        before = target.double().clone()
        OPS.combine_([target], [given.grads[p]] if given.stacked else given.rows(p), w, given.stacked, True)
        assert_combined_close(target, exact + before, magnitude + before.abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for tasks in (1, 2, 3, 5):
        check(sample(layout, tasks, dtype, device), dtype)


@pytest.mark.parametrize("tasks", TASKS)
def test_task_counts(tasks: int, device: torch.device) -> None:
    for dtype in DTYPES:
        check(Sample(list(maker(dtype, device)(tasks, 1100).unbind(0)), tasks), dtype)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_borders_of_registers_chunks_and_blocks(size: int, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16) if size > 2000 else DTYPES:
        check(Sample([maker(dtype, device)(3, size)], 3, stacked=True), dtype)


def test_pieces_that_cross_blocks(device: torch.device) -> None:
    make = maker(torch.float32, device)
    sizes = (65_000, 1, 0, 2_000, 70_001, 5)
    check(Sample([make(n) for _ in range(3) for n in sizes], 3), torch.float32)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_may_differ_between_tasks_and_positions_and_out(out_dtype: torch.dtype, device: torch.device) -> None:
    makers = [maker(dtype, device, seed) for seed, dtype in enumerate(DTYPES)]
    entries: list[Tensor | None] = [makers[(t + p) % 4](*shape) for t in range(5) for p, shape in enumerate([(130,), (9, 9), ()])]
    entries[4] = None
    check(Sample(entries, 5), torch.float32, out_dtype)
    strided = [makers[t % 4](20, 30).T if t % 2 else makers[t % 4](60, 20)[::2] for t in range(5)]
    check(Sample(list(strided), 5), torch.float32, out_dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "stepped"])
@pytest.mark.parametrize("row", [0, 2])
def test_out_may_be_one_of_the_gradients(layout: str, row: int, device: torch.device) -> None:
    apart, aliased = (sample(layout, 4, torch.float32, device) for _ in range(2))
    w = weights_of(4, device)
    out = apart.empty()
    OPS.combine_(out, apart.grads, w)
    target = aliased.grads[row]
    assert target is not None
    OPS.combine_([target], aliased.grads, w)
    assert torch.equal(target, out[0])

    apart, aliased = (sample(layout, 4, torch.float32, device) for _ in range(2))
    expected = apart.empty()
    K, weights = OPS.pcgrad_(expected, apart.grads, 4)
    target = aliased.grads[row]
    assert target is not None
    same_K, same_weights = OPS.pcgrad_([target], aliased.grads, 4)
    assert torch.equal(target, expected[0])
    assert torch.equal(K, same_K)
    assert torch.equal(weights, same_weights)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_the_fused_operator_is_its_three_parts(stacked: bool, accumulate: bool, device: torch.device) -> None:
    given = sample("stacked" if stacked else "lists_with_gaps", 5, torch.float32, device)
    out, expected = ([torch.ones_like(o) for o in given.empty()] for _ in range(2))
    key = torch.tensor([3, 4], device=device)
    K, w = OPS.pcgrad_(out, given.grads, 5, stacked, None, key.clone(), True, 0.2, accumulate)
    assert torch.equal(K, OPS.gram(given.grads, 5, stacked))
    assert torch.equal(w, OPS.pcgrad_weights(K, None, key, True, 0.2))
    assert key.tolist() == [3, 5]
    OPS.combine_(expected, given.grads, w, stacked, accumulate)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))

    plain = [torch.ones_like(o) for o in out]
    key = torch.tensor([3, 4], device=device)
    plain_K, plain_w = reference.pcgrad_(plain, given.grads, 5, stacked, None, key, True, 0.2, accumulate)
    assert_gram_close(K, plain_K, torch.float32)
    torch.testing.assert_close(w, plain_w, rtol=1e-5 if device.type == "cuda" else 1e-11, atol=0)
    torch.testing.assert_close(out, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_is_seen_in_k_and_reaches_the_result(value: float, dtype: torch.dtype, device: torch.device) -> None:
    G = maker(dtype, device)(3, 1030)
    G[1, 1029] = value
    for K in (OPS.gram([G], 3, True), reference.gram([G], 3, True)):
        bad = torch.zeros(3, 3, dtype=torch.bool, device=device)
        bad[1] = bad[:, 1] = True
        assert torch.equal(~K.isfinite(), bad)
    out = torch.zeros(1030, dtype=dtype, device=device)
    _, w = OPS.pcgrad_([out], [G], 3, True)
    assert w.isnan().all()
    assert out.isnan().all()


def test_squares_beyond_float32_are_exact_enough(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the CUDA kernels multiply float32 gradients in float32")
    for scale in (1e30, 1e-30, 1e-42):  # the last is subnormal in float32
        G = (maker(torch.float64, device)(3, 2000) * scale).float()
        exact = G.double() @ G.double().T
        K = OPS.gram([G], 3, True)
        assert (K > 0).diagonal().all()
        assert_gram_close(K, exact)
        out, w = torch.empty(2000, device=device), weights_of(3, device)
        OPS.combine_([out], [G], w, True)
        assert_combined_close(out, w @ G.double(), w.abs() @ G.double().abs())


def test_a_result_beyond_the_outputs_range_is_infinite(device: torch.device) -> None:
    out = torch.zeros(3, dtype=torch.float16, device=device)
    row = torch.tensor([1.0, -1.0, 0.5], device=device)
    OPS.combine_([out], [row], torch.tensor([65536.0], dtype=torch.float64, device=device))
    assert out.tolist() == [torch.inf, -torch.inf, 32768.0]
