"""The coordinate-wise CUDA kernels against the oracle: emulated on CPU tensors, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Emulator, Operators, placed, untouched_around
from ops.coordinatewise_calls import Call, calls, check_lowest_draw, magnitude
from ops.samples import LAYOUTS, Sample, maker, sample
from oracles import coordinatewise as oracle
from tolerances import DTYPES, TOLERANCES
from torch import Tensor

from gradsurgery.ops import coordinatewise as reference


def assert_close(out: Tensor, expected: Tensor, rows: list[Tensor | None], before: Tensor | None = None) -> None:
    """Within the rounding of ``out``'s type and of float32 sums (float64 where a tensor is)."""
    size = magnitude(rows)
    if before is not None:
        expected, size = expected + before, size + before.abs()
    float64 = torch.float64 in {out.dtype, *(row.dtype for row in rows if row is not None)}
    summing = TOLERANCES[torch.float64 if float64 else torch.float32].combine
    smallest = torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps
    allowed = TOLERANCES[out.dtype].rounding * expected.abs() + summing * size + smallest
    error = (out.double().reshape(-1) - expected).abs()
    assert bool((error <= allowed).all()), f"error over the allowed, at worst: {(error / allowed).max():.3f}"


def check(operators: Operators, given: Sample, out: list[Tensor] | None = None, out_dtype: torch.dtype | None = None) -> None:
    for call in calls(given):
        targets = given.empty(out_dtype) if out is None else out
        expected = given.empty(torch.float64)
        call.run(reference, given, expected)
        for accumulate in (False, True):
            before = [target.double().reshape(-1).clone() for target in targets] if accumulate else None
            call.run(operators.ops, given, targets, accumulate)
            for p, target in enumerate(targets):
                rows = given.rows(p)
                if any(row is not None for row in rows):
                    assert_close(target, expected[p].reshape(-1), rows, before[p] if before else None)
                else:
                    assert not target.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(operators: Operators, layout: str, dtype: torch.dtype) -> None:
    for tasks in (1, 2, 5, 9):
        check(operators, sample(layout, tasks, dtype, operators.device))


@pytest.mark.parametrize("tasks", [*range(1, 35), 70])
def test_task_counts(operators: Operators, tasks: int) -> None:
    for dtype in DTYPES:
        check(operators, Sample([maker(dtype, operators.device)(tasks, 335)], tasks, stacked=True))


@pytest.mark.parametrize("tasks", [2, 3, 9, 33])
def test_the_kernels_are_the_oracle(operators: Operators, tasks: int) -> None:
    given = Sample([maker(torch.float32, operators.device)(tasks, 101)], tasks, stacked=True)
    for call in calls(given):
        out = given.empty()
        call.run(operators.ops, given, out)
        assert_close(out[0], call.exact(given)[0].to(operators.device), given.rows(0))


@pytest.mark.parametrize("numel", [1, 7, 31, 257, 2047, 2048, 2049, 65537])
def test_sizes(operators: Operators, numel: int) -> None:
    for dtype in DTYPES:
        check(operators, Sample([maker(dtype, operators.device)(3, numel)], 3, stacked=True))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_may_differ(operators: Operators, out_dtype: torch.dtype) -> None:
    makers = [maker(dtype, operators.device, seed) for seed, dtype in enumerate(DTYPES)]
    for narrow in (makers, makers[1:]):
        shapes = ((130,), (9, 9), ())
        entries: list[Tensor | None] = [narrow[(t + p) % len(narrow)](*shape) for t in range(5) for p, shape in enumerate(shapes)]
        entries[4] = None
        check(operators, Sample(entries, 5), out_dtype=out_dtype)
        check(operators, Sample([narrow[t % len(narrow)](60, 20)[::2] for t in range(3)], 3), out_dtype=out_dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_alignments(emulator: Emulator, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    """Borders of 16 bytes in different places of the rows and of the output; nothing beside the output is written."""
    operators = Operators(emulator.operators, torch.device("cpu"))
    make = maker(dtype)
    for tasks, numel in ((3, 4), (3, 301), (9, 301), (20, 131)):
        for offset in (0, 1, 3, 5):
            for out_offset in (0, offset):
                rows: list[Tensor | None] = [placed(make(numel), offset) for _ in range(tasks)]
                out = [placed(torch.zeros(numel), out_offset, out_dtype)]
                check(operators, Sample(rows, tasks), out)
                assert untouched_around(out[0])
        apart: list[Tensor | None] = [placed(make(numel), t) for t in range(tasks)]
        check(operators, Sample(apart, tasks), [placed(torch.zeros(numel), 0, out_dtype)])


def test_random_numbers_at_every_position_of_a_block(operators: Operators) -> None:
    """Positions that begin anywhere in a Philox block, read one, two, four or eight coordinates at a time."""
    for dtype in DTYPES:
        sizes = [1, 40, 2, 41, 3, 42, 4100]
        ones = [torch.ones(size, dtype=dtype, device=operators.device) for size in sizes]
        given = Sample([*ones, *(-one for one in ones)], 2)
        call, out = Call("graddrop", [], (2**40 + 1, 2**35 + 3)), given.empty()
        call.run(operators.ops, given, out)
        U = torch.tensor([oracle.uniform(*call.key, k) for k in range(sum(sizes))], dtype=torch.float64)
        assert torch.equal(torch.cat(out).cpu().double(), torch.sign(0.5 - U))


def test_which_sign_is_kept_is_the_cpus_choice(operators: Operators) -> None:
    """Also where the order of float32 sums could tip it: among 200,000 coordinates at most one stands so close to its border."""
    given = Sample([maker(torch.float32, operators.device)(6, 200_000)], 6, stacked=True)
    out, expected = given.empty(), given.empty()
    Call("graddrop").run(operators.ops, given, out)
    Call("graddrop").run(reference, given, expected)
    assert int((torch.sign(out[0]) != torch.sign(expected[0])).sum()) <= 1


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("form", ["contiguous", "channels_last", "transposed", "stepped"])
def test_out_may_be_a_gradient(operators: Operators, form: str, accumulate: bool) -> None:
    for tasks in (4, 33):
        for call in calls(sample(form, tasks, torch.float32, operators.device)):
            apart, aliased = (sample(form, tasks, torch.float32, operators.device) for _ in range(2))
            like, target = apart.grads[2], aliased.grads[2]
            assert like is not None
            assert target is not None
            expected = like.clone()
            call.run(operators.ops, apart, [expected], accumulate)
            call.run(operators.ops, aliased, [target], accumulate)
            assert torch.equal(target, expected)


def test_tables_too_large_for_a_launchs_parameters(operators: Operators) -> None:
    make = maker(torch.float32, operators.device)
    check(operators, Sample([make(1 + p % 7) for _ in range(4) for p in range(300)], 4))
    check(operators, Sample([make(5) for _ in range(500)], 500))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tasks", [3, 12, 20, 40])
def test_what_is_not_finite_gives_nan_there_and_only_there(operators: Operators, value: float, tasks: int) -> None:
    for dtype in DTYPES:
        G = maker(dtype, operators.device)(tasks, 530)
        bad = torch.zeros(530, dtype=torch.bool, device=operators.device)
        bad[[0, 17, 529]] = True
        G[tasks // 2, bad] = value
        given = Sample([G], tasks, stacked=True)
        for call in calls(given):
            out = given.empty()
            call.run(operators.ops, given, out)
            assert torch.equal(out[0].isnan(), bad), call
            assert out[0][~bad].isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.3, 0.6, 1.0])
def test_thresholds_that_are_met_exactly(operators: Operators, threshold: float) -> None:
    for tasks in (1, 2, 3, 5, 7, 10, 20):
        G = torch.ones(tasks, tasks + 1, device=operators.device).triu(1) * 2 - 1
        out = torch.empty(tasks + 1, device=operators.device)
        operators.ops.coordinatewise_([out], [G], tasks, True, "sign_agreement", [threshold, 0.0])
        exact = oracle.by_coordinate(list(G.cpu()), lambda x, _: oracle.sign_agreement(x, threshold, mean=False))
        assert torch.equal(out.cpu().double(), exact)


def test_what_would_read_wild_memory_is_refused(operators: Operators) -> None:
    G = torch.ones(3, 5, device=operators.device)
    out, key = [torch.zeros(5, device=operators.device)], torch.tensor([0, 0], device=operators.device)
    for arguments, message in (
        (("graddrop", [0.5], None, key), "graddrop takes 3 options"),
        (("graddrop", [], torch.zeros(4, dtype=torch.float64, device=operators.device)), "uniform must have 5 elements"),
        (("graddrop", [], None, key[:1]), "int64 tensor of 2 elements"),
        (("graddrop", []), "either uniform or key"),
        (("trimmed_mean", [2.0]), "must be less than the 3 gradients"),
        (("trimmed_mean", [-1.0]), r"trim must be in 0..tasks-1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            operators.ops.coordinatewise_(out, [G], 3, True, *arguments)


def test_the_lowest_draw_drops_no_agreement(emulator: Emulator) -> None:
    check_lowest_draw(emulator.operators)
