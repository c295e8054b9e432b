"""``coordinatewise_``, compiled where it is, against its reference to the bit and against the oracle."""

from __future__ import annotations

import pytest
import torch
from ops.coordinatewise_calls import Call, calls, check_lowest_draw, magnitude
from ops.samples import LAYOUTS, Sample, maker, sample
from oracles import coordinatewise as oracle
from tolerances import DTYPES, assert_combined_close
from torch import Tensor

from gradsurgery.ops import coordinatewise as reference

OPS = torch.ops.gradsurgery
SIZES = (1, 7, 8, 9, 255, 1023, 1024, 1025, 65535, 65536, 65537, 200_003)


def check(given: Sample, out_dtype: torch.dtype | None = None, oracles: bool = True) -> None:
    for call in calls(given):
        out, plain = given.empty(out_dtype), given.empty(out_dtype)
        call.run(OPS, given, out)
        call.run(reference, given, plain)
        exact = call.exact(given) if oracles else [target.double().reshape(-1) for target in plain]
        for p, (target, other) in enumerate(zip(out, plain, strict=True)):
            if all(row is None for row in given.rows(p)):
                assert not target.any(), "a position that no task reaches must be zeroed"
                assert not other.any()
                continue
            size, expected = magnitude(given.rows(p)), exact[p].to(target.device)
            assert_combined_close(target.reshape(-1), expected, size)
            assert_combined_close(other.reshape(-1), expected, size)
            if target.device.type == "cpu" and not (call.rule == "graddrop" and call.options):  # leaks may be fused with sums
                assert torch.equal(target, other), f"{call} is not the reference to the bit"
        before = [target.double().clone() for target in out]
        call.run(OPS, given, out, accumulate=True)
        for p, (target, old) in enumerate(zip(out, before, strict=True)):
            if any(row is not None for row in given.rows(p)):
                flat = old.reshape(-1)
                assert_combined_close(target.reshape(-1), exact[p].to(target.device) + flat, magnitude(given.rows(p)) + flat.abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for tasks in (1, 2, 3, 5):
        check(sample(layout, tasks, dtype, device), oracles=dtype == torch.float32)


@pytest.mark.parametrize("tasks", [*range(1, 36), 70])
def test_task_counts(tasks: int, device: torch.device) -> None:
    for dtype in DTYPES:
        check(Sample(list(maker(dtype, device)(tasks, 131).unbind(0)), tasks))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_borders_of_registers_chunks_and_blocks(size: int, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16) if size > 2000 else DTYPES:
        check(Sample([maker(dtype, device)(3, size)], 3, stacked=True), oracles=size < 2000)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_may_differ_between_tasks_and_positions_and_out(out_dtype: torch.dtype, device: torch.device) -> None:
    makers = [maker(dtype, device, seed) for seed, dtype in enumerate(DTYPES)]
    entries: list[Tensor | None] = [makers[(t + p) % 4](*shape) for t in range(5) for p, shape in enumerate([(130,), (9, 9), ()])]
    entries[4] = None
    check(Sample(entries, 5), out_dtype)
    check(Sample([makers[t % 4](20, 30).T if t % 2 else makers[t % 4](60, 20)[::2] for t in range(5)], 5), out_dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "stepped"])
@pytest.mark.parametrize("row", [0, 2])
def test_out_may_be_one_of_the_gradients(layout: str, row: int, device: torch.device) -> None:
    for call in calls(sample(layout, 4, torch.float32, device)):
        apart, aliased = (sample(layout, 4, torch.float32, device) for _ in range(2))
        out, target = apart.empty(), aliased.grads[row]
        assert target is not None
        call.run(OPS, apart, out)
        call.run(OPS, aliased, [target])
        assert torch.equal(target, out[0])


def test_uniform_numbers_are_philox(device: torch.device) -> None:
    assert oracle.philox((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # Random123's known answer
    for seed, step, first in ((0, 0, 0), (5, 1, 3), (-(2**63), 2**40, 4 * 2**32 - 6)):
        drawn = reference.uniform_numbers(torch.tensor([seed, step], device=device), first, 13)
        assert drawn.tolist() == [oracle.uniform(seed % 2**64, step, first + k) for k in range(13)]


def test_the_lowest_draw_drops_no_agreement(device: torch.device) -> None:
    for ops in (OPS, reference):
        check_lowest_draw(ops, device)


def kept_where(U: Tensor, given: Sample, key: tuple[int, int]) -> None:
    """A gradient of +1 beside one of -1 has P = 1/2: the result is the sign of 1/2 - U."""
    out = given.empty()
    Call("graddrop", [], key).run(OPS, given, out)
    assert torch.equal(torch.cat([o.reshape(-1) for o in out]).cpu().double(), torch.sign(0.5 - U))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_numbers_belong_to_coordinates(dtype: torch.dtype, device: torch.device) -> None:
    """The same in every layout, for positions of any length, and none repeats from step to step or seed to seed."""
    U = torch.tensor([oracle.uniform(11, 4, k) for k in range(4 * 6 * 5 * 3)], dtype=torch.float64)
    one = torch.ones(4, 6, 5, 3, dtype=dtype, device=device)
    last = one.contiguous(memory_format=torch.channels_last)
    for a, b in ((one, -one), (last, -last), (one, -last), (last, -one), (one.transpose(0, 3).contiguous().transpose(0, 3), -last)):
        kept_where(U, Sample([a, b], 2), (11, 4))
    whole = torch.stack([one, -one])
    kept_where(U, Sample([whole], 2, stacked=True), (11, 4))
    parts = one.reshape(-1).split([1, 2, 130, 7, 220])
    kept_where(U, Sample([*parts, *(-part for part in parts)], 2), (11, 4))
    results = []
    for key in ((11, 4), (11, 5), (12, 4), (11, 4 + 2**32), (11 + 2**32, 4)):
        out = Sample([one, -one], 2).empty()
        Call("graddrop", [], key).run(OPS, Sample([one, -one], 2), out)
        results.append(out[0].reshape(-1))
    assert len({tuple(result.tolist()) for result in results}) == len(results)


def test_given_uniform_numbers_take_the_place_of_drawn_ones(device: torch.device) -> None:
    make = maker(torch.float32, device)
    given = Sample([make(*shape) for _ in range(3) for shape in ((7, 5), (1030,))], 3)
    key = torch.tensor([9, 2], device=device)
    U = reference.uniform_numbers(key, 0, 1065)
    out, expected = given.empty(), given.empty()
    OPS.coordinatewise_(out, given.grads, 3, False, "graddrop", [], U)
    OPS.coordinatewise_(expected, given.grads, 3, False, "graddrop", [], None, key)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tasks", [3, 8, 12, 40])
def test_what_is_not_finite_gives_nan_there_and_only_there(
    value: float, dtype: torch.dtype, tasks: int, device: torch.device
) -> None:
    G = maker(dtype, device)(tasks, 1030)
    bad = torch.zeros(1030, dtype=torch.bool, device=device)
    bad[[0, 17, 1029]] = True
    G[tasks // 2, bad] = value
    for call in calls(Sample([G], tasks, stacked=True)):
        for ops in (OPS, reference):
            out = torch.zeros(1030, dtype=dtype, device=device)
            call.run(ops, Sample([G], tasks, stacked=True), [out])
            assert torch.equal(out.isnan(), bad), call
            assert out[~bad].isfinite().all()


def test_zeros_give_zero(device: torch.device) -> None:
    for call in calls(Sample([torch.zeros(4, 11, device=device)], 4, stacked=True)):
        out = torch.ones(11, device=device)
        call.run(OPS, Sample([torch.zeros(4, 11, device=device)], 4, stacked=True), [out])
        assert not out.any()


@pytest.mark.parametrize("threshold", [k / 20 for k in range(21)])
def test_thresholds_that_are_met_exactly(threshold: float, device: torch.device) -> None:
    for tasks in (1, 2, 3, 5, 7, 10, 20):
        G = torch.ones(tasks, tasks + 1, device=device).triu(1) * 2 - 1  # k of the signs are +, k = 0..tasks
        out = torch.empty(tasks + 1, device=device)
        OPS.coordinatewise_([out], [G], tasks, True, "sign_agreement", [threshold, 0.0])
        exact = oracle.by_coordinate(list(G.cpu()), lambda x, _: oracle.sign_agreement(x, threshold, mean=False))
        assert torch.equal(out.cpu().double(), exact)


def test_a_rule_that_does_not_fit_is_refused(device: torch.device) -> None:
    G = torch.ones(3, 5, device=device)
    out = [torch.full((5,), 7.0, device=device)]
    key, U = torch.tensor([0, 0], device=device), torch.zeros(5, dtype=torch.float64, device=device)
    for arguments, message in (
        (("mode", []), "no coordinate-wise rule is called mode"),
        (("median", [1.0]), "median takes 0 options, found 1"),
        (("sign_agreement", [1.0]), "sign_agreement takes 2 options"),
        (("graddrop", [0.5, 0.5], None, key), "graddrop takes 3 options"),
        (("graddrop", []), "either uniform or key"),
        (("graddrop", [], U, key), "either uniform or key"),
        (("graddrop", [], U[:4]), "uniform must have 5 elements"),
        (("trimmed_mean", [2.0]), r"2 \* trim must be less than the 3 gradients"),
    ):
        for ops in (OPS, reference):
            with pytest.raises(RuntimeError, match=message):
                ops.coordinatewise_(out, [G], 3, True, *arguments)
    with pytest.raises(RuntimeError, match=r"2 \* trim must be less than the 2 gradients"):
        OPS.coordinatewise_(out, [G[0], None, G[2]], 3, False, "trimmed_mean", [1.0])
    assert torch.equal(out[0], torch.full((5,), 7.0, device=device)), "nothing may be half written"
    assert key.tolist() == [0, 0]
