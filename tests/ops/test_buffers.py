"""The operators with buffers: compiled against the reference, against float64 on full matrices, and what a bad number may touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.buffer_checks import check, check_scaled_risks, flat
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from tolerances import DTYPES, assert_gram_close
from torch import Tensor

from gradsurgery import ops
from gradsurgery.ops import reference

OPS = torch.ops.gradsurgery
TASKS = (*range(1, 10), 16, 17, 33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for tasks in (1, 2, 5):
        for buffer_dtype in (torch.float32, torch.float64):
            check(OPS, sample(layout, tasks, dtype, device), buffer_dtype, device.type == "cuda")


@pytest.mark.parametrize("tasks", TASKS)
def test_task_counts(tasks: int, device: torch.device) -> None:
    for dtype in DTYPES:
        check(OPS, Sample(list(maker(dtype, device)(tasks, 1100).unbind(0)), tasks), cuda=device.type == "cuda")


@pytest.mark.parametrize("size", [1, 7, 1023, 1025, 65_537, 150_003])
def test_sizes(size: int, device: torch.device) -> None:
    check(OPS, Sample([maker(torch.float32, device)(3, size)], 3, stacked=True), cuda=device.type == "cuda")


def test_types_may_differ_between_tasks_and_positions(device: torch.device) -> None:
    makers = [maker(dtype, device, seed) for seed, dtype in enumerate(DTYPES)]
    entries: list[Tensor | None] = [makers[(t + p) % 4](*shape) for t in range(5) for p, shape in enumerate([(130,), (9, 9), ()])]
    entries[4] = None
    for dtype in (torch.float32, torch.float64):
        check(OPS, Sample(entries, 5), dtype, device.type == "cuda")


@pytest.mark.parametrize("channels_last_buffers", [False, True])
def test_buffers_of_another_layout(channels_last_buffers: bool, device: torch.device) -> None:
    make = maker(torch.float32, device)
    rows = [make(2, 5, 7, 3) for _ in range(3)]
    if not channels_last_buffers:
        rows = [row.contiguous(memory_format=torch.channels_last) for row in rows]
    dense = make(3, 2, 5, 7, 3)
    strided = torch.empty_strided(dense.shape, (210, 105, 1, 15, 5), device=device)
    strided.copy_(dense)
    scales, rate = weights_of(3, device), torch.tensor(0.5, dtype=torch.float64, device=device)
    K = OPS.ema_gram_([strided], rows, 3, False, scales, rate)
    expected = dense.double() + 0.5 * (scales.reshape(3, 1, 1, 1, 1) * torch.stack(rows).double() - dense.double())
    torch.testing.assert_close(strided, expected.float(), rtol=3e-7, atol=1e-7)
    assert_gram_close(K, flat(Sample(list(rows), 3), [strided]) @ flat(Sample(list(rows), 3), [strided]).T, torch.float32)


def operators(device: torch.device) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        ("ema_gram_", (weights_of(3, device), torch.tensor(0.3, dtype=torch.float64, device=device))),
        ("excess_risk_", ()),
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_never_enters_a_buffer(value: float, device: torch.device) -> None:
    for name, more in operators(device):
        for module in (OPS, reference):
            G = maker(torch.float32, device)(3, 1030)
            G[1, 1029] = value
            buffer = torch.ones(3, 1030, device=device)
            result = getattr(module, name)([buffer], [G], 3, True, *more)
            assert buffer.isfinite().all()
            assert float(buffer[1, 1029]) == 1.0
            assert not torch.equal(buffer[0], torch.ones_like(buffer[0]))
            bad = torch.zeros_like(result, dtype=torch.bool)
            bad[1] = True
            if result.dim() == 2:
                bad[:, 1] = True
            assert torch.equal(result.isnan(), bad)


def test_a_new_value_beyond_the_buffers_range_is_refused_and_told(device: torch.device) -> None:
    scales = torch.tensor([1e30, 1.0], dtype=torch.float64, device=device)
    rate = torch.tensor(1.0, dtype=torch.float64, device=device)
    for module in (OPS, reference):
        buffer = torch.ones(2, 9, device=device)
        K = module.ema_gram_([buffer], [torch.full((2, 9), 1e20, device=device)], 2, True, scales, rate)
        assert buffer[0].tolist() == [1.0] * 9
        assert K.isnan().tolist() == [[True, True], [True, False]]


def test_where_valid_is_false_nothing_is_written(device: torch.device) -> None:
    for valid in (False, True):
        flag = torch.tensor(valid, device=device)
        for name, more in operators(device):
            for module in (OPS, reference):
                G = maker(torch.float32, device)(3, 2000)
                buffer = torch.ones(3, 2000, device=device)
                result = getattr(module, name)([buffer], [G], 3, True, *more, flag)
                assert bool(result.isnan().all()) is not valid
                assert torch.equal(buffer, torch.ones_like(buffer)) is not valid


def test_what_would_read_wild_memory_is_refused(device: torch.device) -> None:
    rate = torch.tensor(0.3, dtype=torch.float64, device=device)
    rows = [torch.ones(4, device=device), torch.ones(4, device=device)]
    for buffers, message in (
        ([torch.ones(2, 5, device=device)], "one shape"),
        ([torch.ones(3, 4, device=device)], "must be"),
        ([torch.ones(2, 4, device=device)] * 2, "one tensor a gradient"),
        ([torch.ones(2, 4, device=device, dtype=torch.float16)], "float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.ema_gram_(buffers, rows, 2, False, weights_of(2, device), rate)
    with pytest.raises(RuntimeError, match="scales must be"):
        OPS.ema_gram_([torch.ones(2, 4, device=device)], rows, 2, False, weights_of(3, device), rate)


@pytest.mark.parametrize("lazy", ["negated", "zeros"])
def test_gradients_whose_values_do_not_lie_in_their_memory(lazy: str) -> None:
    negated = torch.randn(3, 40, dtype=torch.complex64).conj().imag
    G = negated if lazy == "negated" else torch._efficientzerotensor((3, 40))
    plain = torch.zeros(3, 40) + G
    for name, more in operators(torch.device("cpu")):
        for given, stacked in (([G], True), (list(G), False), ([G[0], None, plain[2]], False)):
            expected = [None if g is None else torch.zeros_like(g) + g for g in given]
            one, other = torch.ones(3, 40), torch.ones(3, 40)
            result = getattr(OPS, name)([one], given, 3, stacked, *more)
            assert torch.equal(result, getattr(OPS, name)([other], expected, 3, stacked, *more))
            assert torch.equal(one, other)


def test_the_same_bits_for_any_number_of_threads() -> None:
    G = maker(torch.float32)(3, 300_001)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name, more in operators(torch.device("cpu")):
                buffer = torch.ones(3, 300_001)
                results.append((getattr(OPS, name)([buffer], [G], 3, True, *more), buffer))
    finally:
        torch.set_num_threads(before)
    for k, (result, buffer) in enumerate(results):
        assert torch.equal(result, results[k % 2][0])
        assert torch.equal(buffer, results[k % 2][1])


def test_writing_to_a_buffer_that_autograd_saved_is_noticed(device: torch.device) -> None:
    for name, more in operators(device):
        buffer = torch.ones(3, 5, device=device)
        x = torch.ones_like(buffer, requires_grad=True)
        loss = (x * buffer).sum()
        getattr(ops, name)([buffer], [maker(torch.float32, device)(3, 5)], 3, True, *more)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_risks_over_the_whole_range_of_float64() -> None:
    check_scaled_risks(OPS)
