"""The CUDA operators through torch, with every layout of gradients: emulated on CPU tensors, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import Operators
from ops.samples import LAYOUTS, Sample, maker, sample, weights_of
from oracles.pcgrad import pcgrad
from tolerances import DTYPES, TOLERANCES
from torch import Tensor


def widest(given: Sample) -> torch.dtype:
    """float64 when one of the gradients is: then everything is computed in it."""
    dtypes = {g.dtype for g in given.grads if g is not None}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def assert_gram(K: Tensor, given: Sample) -> None:
    G = given.matrix()
    exact = G @ G.T
    norms = exact.diagonal().sqrt()
    assert K.dtype == torch.float64
    assert torch.equal(K, K.T)
    dtype = next(iter({g.dtype for g in given.grads if g is not None})) if widest(given) == torch.float64 else torch.float32
    assert bool(((K - exact).abs() <= TOLERANCES[dtype].gram * torch.outer(norms, norms)).all())


def assert_combined(out: Tensor, rows: list[Tensor | None], w: Tensor, before: Tensor | None = None) -> None:
    """``out`` against float64, within the rounding of its type and of float32 sums (float64 where a gradient is)."""
    exact = torch.zeros_like(out, dtype=torch.float64) if before is None else before.double()
    magnitude = exact.abs()
    for x, row in zip(w, rows, strict=True):
        if row is not None:
            exact = exact + x * row.double()
            magnitude = magnitude + (x * row.double()).abs()
    float64 = torch.float64 in {out.dtype, *(row.dtype for row in rows if row is not None)}
    summing = TOLERANCES[torch.float64 if float64 else torch.float32].combine
    smallest = torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps
    allowed = TOLERANCES[out.dtype].rounding * exact.abs() + summing * magnitude + smallest
    assert bool(((out.double() - exact).abs() <= allowed).all())


def check(operators: Operators, given: Sample, out_dtype: torch.dtype | None = None) -> None:
    ops, T = operators.ops, given.tasks
    K = ops.gram(given.grads, T, given.stacked)
    assert_gram(K, given)
    w = weights_of(T, operators.device)
    out = given.empty(out_dtype)
    ops.combine_(out, given.grads, w, given.stacked)
    for p, target in enumerate(out):
        assert_combined(target, given.rows(p), w)
    before = [target.clone() for target in out]
    ops.combine_(out, given.grads, w, given.stacked, True)
    for p, target in enumerate(out):
        assert_combined(target, given.rows(p), w, before[p])

    fused = given.empty(out_dtype)
    fused_K, fused_w = ops.pcgrad_(fused, given.grads, T, given.stacked)
    assert torch.equal(fused_K, K)
    assert torch.equal(fused_w, ops.pcgrad_weights(K))
    for p, target in enumerate(fused):
        assert_combined(target, given.rows(p), fused_w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(operators: Operators, layout: str, dtype: torch.dtype) -> None:
    for tasks in (1, 2, 5, 9):
        check(operators, sample(layout, tasks, dtype, operators.device))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_types_may_differ(operators: Operators, out_dtype: torch.dtype) -> None:
    """Between positions, between the tasks of a position, and from out's; dense or not."""
    makers = [maker(dtype, operators.device, seed) for seed, dtype in enumerate(DTYPES)]
    for narrow in (makers, makers[1:]):
        shapes = ((130,), (9, 9), ())
        entries: list[Tensor | None] = [narrow[(t + p) % len(narrow)](*shape) for t in range(5) for p, shape in enumerate(shapes)]
        entries[4] = None
        check(operators, Sample(entries, 5), out_dtype)
        check(operators, Sample([narrow[t % len(narrow)](20, 30).T for t in range(3)], 3), out_dtype)
        check(operators, Sample([narrow[t % len(narrow)](60, 20)[::2] for t in range(3)], 3), out_dtype)


@pytest.mark.parametrize("form", ["contiguous", "channels_last", "transposed", "stepped"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_out_may_be_a_gradient(operators: Operators, form: str, accumulate: bool) -> None:
    for row in (0, 2):
        apart, aliased = (sample(form, 4, torch.float32, operators.device) for _ in range(2))
        like, target = apart.grads[row], aliased.grads[row]
        assert like is not None
        assert target is not None
        expected = like.clone()
        w = weights_of(4, operators.device)
        operators.ops.combine_([expected], apart.grads, w, False, accumulate)
        operators.ops.combine_([target], aliased.grads, w, False, accumulate)
        assert torch.equal(target, expected)


def test_a_strided_out_keeps_what_lies_between(operators: Operators) -> None:
    make = maker(torch.float32, operators.device)
    whole = make(40, 6)
    before = whole.clone()
    out = whole[::2, 1::2]
    rows = [make(20, 3) for _ in range(3)]
    w = weights_of(3, operators.device)
    old = out.clone()
    operators.ops.combine_([out], rows, w, False, True)
    assert_combined(out, list(rows), w, old)
    mask = torch.ones_like(whole, dtype=torch.bool)
    mask[::2, 1::2] = False
    assert torch.equal(whole[mask], before[mask])


@pytest.mark.parametrize("tasks", [2, 8, 9, 33])
def test_pcgrad_is_algorithm_1(operators: Operators, tasks: int) -> None:
    rows = maker(torch.float64, operators.device)(tasks, 2 * tasks) - 0.3
    for include_self in (False, True):
        out = torch.empty(2 * tasks, dtype=torch.float64, device=operators.device)
        operators.ops.pcgrad_([out], [rows], tasks, True, None, None, include_self, 1.0 / tasks)
        torch.testing.assert_close(out, pcgrad(rows, "ascending", include_self, "mean"), rtol=1e-9, atol=1e-9)


def test_key_advances_unless_k_is_not_finite(operators: Operators) -> None:
    rows = maker(torch.float32, operators.device)(3, 100)
    key = torch.tensor([5, 0], device=operators.device)
    out = torch.empty(100, device=operators.device)
    for step in range(3):
        _, w = operators.ops.pcgrad_([out], [rows], 3, True, None, key)
        K = operators.ops.gram([rows], 3, True)
        assert torch.equal(w, operators.ops.pcgrad_weights(K, None, torch.tensor([5, step], device=operators.device)))
    assert key.tolist() == [5, 3]
    rows[1, 50] = torch.nan
    _, w = operators.ops.pcgrad_([out], [rows], 3, True, None, key)
    assert key.tolist() == [5, 3]
    assert w.isnan().all()
    assert out.isnan().all()


def test_what_would_read_wild_memory_is_refused(operators: Operators) -> None:
    rows = [torch.ones(4, device=operators.device), torch.ones(5, device=operators.device)]
    with pytest.raises(RuntimeError, match="one shape"):
        operators.ops.gram(rows, 2)
    K = torch.eye(2, dtype=torch.float64, device=operators.device)
    with pytest.raises(RuntimeError, match="int64 tensor of 4 elements"):
        operators.ops.pcgrad_weights(K, torch.zeros(3, dtype=torch.int64, device=operators.device))
    with pytest.raises(RuntimeError, match="float64"):
        operators.ops.pcgrad_weights(K.float())
