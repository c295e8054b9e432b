"""What PyTorch asks of an operator: opcheck, derivatives, version counters, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods.gradients import FROM_GRAM
from ops.samples import Sample, maker, sample, weights_of
from torch import Tensor

import gradsurgery as gs
from gradsurgery import ops
from gradsurgery.ops.schema import SCHEMAS

OPS = torch.ops.gradsurgery
LAYOUTS = ("contiguous", "lists_with_gaps", "unreached", "stacked_noncontiguous")


def inputs(layout: str, requires_grad: bool = False, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Sample:
    given = sample(layout, 3, dtype, device)
    given.grads = [None if g is None else g.detach().requires_grad_(requires_grad) for g in given.grads]
    return given


def grouped(given: Sample) -> list[int]:
    """Two groups where there are two positions. [P]"""
    return [p % 2 for p in range(given.pieces)]


def weights_of_groups(given: Sample, device: Any = "cpu") -> Tensor:
    return torch.stack([weights_of(given.tasks, device, seed) for seed in range(max(grouped(given)) + 1)])


def gram_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    both = [inputs(layout, device=device), inputs(layout, requires_grad=True, device=device)]
    return [(g.grads, 3, g.stacked, groups) for g in both for groups in (None, grouped(g))]


def combine_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    if layout == "unreached":
        return []  # `combine` makes its results like a gradient of each position, and here is none
    calls = []
    for requires_grad in (False, True):
        g = inputs(layout, requires_grad, device=device)
        calls.append((g.grads, weights_of(3, device).requires_grad_(requires_grad), g.stacked))
        calls.append((g.grads, weights_of_groups(g, device).requires_grad_(requires_grad), g.stacked, grouped(g)))
    return calls


def combine_in_place_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    g = inputs(layout, device=device)
    return [
        ([o.zero_() for o in g.empty()], g.grads, w, g.stacked, accumulate, groups)
        for accumulate in (False, True)
        for w, groups in ((weights_of(3, device), None), (weights_of_groups(g, device), grouped(g)))
    ]


def pcgrad_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    g = inputs(layout, device=device)
    order, key = torch.arange(3, device=device).flip(0).expand(3, 3).contiguous(), torch.tensor([5, 6], device=device)
    return [
        ([o.zero_() for o in g.empty()], g.grads, 3, g.stacked, *arrangement, True, 0.5, accumulate)
        for arrangement, accumulate in (((order, None), False), ((None, key), True), ((None, None), False))
    ]


def batches(device: Any, requires_grad: bool = False) -> list[Sample]:
    """Gradients of four samples: with a gap, and stacked."""
    make = maker(torch.float32, device, requires_grad=requires_grad)
    return [Sample([make(4, 5), make(4), None, make(4), make(4, 5), None], 3), Sample([make(3, 4, 2, 2)], 3, stacked=True)]


def weights_of_samples(device: Any) -> Tensor:
    return torch.stack([weights_of(3, device, seed) for seed in range(4)])


def gram_samples_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    return [(g.grads, 3, g.stacked) for requires_grad in (False, True) for g in batches(device, requires_grad)]


def combine_samples_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    both = [(g, requires_grad) for requires_grad in (False, True) for g in batches(device, requires_grad)]
    return [(g.grads, weights_of_samples(device).requires_grad_(requires_grad), g.stacked) for g, requires_grad in both]


def combine_samples_in_place_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    return [
        ([o.zero_() for o in g.empty()], g.grads, weights_of_samples(device), g.stacked, accumulate)
        for g in batches(device)
        for accumulate in (False, True)
    ]


def pcgrad_samples_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    key = torch.tensor([5, 6], device=device)
    return [([o.zero_() for o in g.empty()], g.grads, 3, g.stacked, None, key, True, 0.5, True) for g in batches(device)]


def weight_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    G = maker(torch.float64, device)(3, 4)
    order, key = torch.arange(3, device=device).flip(0).expand(3, 3).contiguous(), torch.tensor([5, 6], device=device)
    K = torch.stack([G @ G.T, torch.eye(3, dtype=torch.float64, device=device)])
    return [(gram, *rest) for gram in (K[0], K) for rest in ((), (order,), (None, key, True, 0.5))]


def buffered_calls(layout: str, device: Any, *more: Tensor) -> list[tuple[Any, ...]]:
    if layout == "unreached":  # a position without any gradient has no buffer
        return []
    g = inputs(layout, device=device)
    buffers = [torch.ones((3, *out.shape), device=device) for out in g.empty()]
    valid = torch.tensor(True, device=device)
    return [(buffers, g.grads, 3, g.stacked, *more, flag) for flag in (None, valid)]


def ema_gram_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    return buffered_calls(layout, device, weights_of(3, device), torch.tensor(0.3, dtype=torch.float64, device=device))


def solve_calls(_: str, device: Any) -> list[tuple[Any, ...]]:
    G = maker(torch.float64, device)(2, 4, 5)
    return [(G[0] @ G[0].T, "krum", [0.0, 1.0]), (G @ G.mT, "krum", [1.0, 2.0])]


def coordinatewise_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    g = inputs(layout, device=device)
    U = torch.rand(sum(o.numel() for o in g.empty()), dtype=torch.float64).to(device)
    key = torch.tensor([5, 6], device=device)
    return [
        ([o.zero_() for o in g.empty()], g.grads, 3, g.stacked, *rule)
        for rule in (
            ("graddrop", [], U),
            ("graddrop", [0.0, 0.5, 1.0], None, key, True),
            ("sign_agreement", [0.5, 1.0]),
            ("trimmed_mean", [0.0], None, None, True),
            ("median", []),
        )
    ]


NAMES = ["a", "b", "c"]
SUM = gs.GradientAggregator("sum", tasks=NAMES)  # without memory, so that two calls do the same


def boundary_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    g = inputs(layout, device=device)
    features = [[o.zero_().requires_grad_(requires_grad) for o in g.empty()] for requires_grad in (False, True)]
    return [(tensors, SUM._number, NAMES, []) for tensors in features if all(t.numel() for t in tensors)]


def boundary_backward_calls(layout: str, device: Any) -> list[tuple[Any, ...]]:
    g = inputs(layout, device=device)
    return [] if g.stacked else [(g.grads, SUM._number, NAMES, [])]


CALLS: dict[str, Callable[[str, Any], list[tuple[Any, ...]]]] = {
    "gram": gram_calls,
    "pcgrad_weights": weight_calls,
    "solve": solve_calls,
    "combine": combine_calls,
    "combine_": combine_in_place_calls,
    "coordinatewise_": coordinatewise_calls,
    "pcgrad_": pcgrad_calls,
    "gram_samples": gram_samples_calls,
    "combine_samples": combine_samples_calls,
    "combine_samples_": combine_samples_in_place_calls,
    "pcgrad_samples_": pcgrad_samples_calls,
    "ema_gram_": ema_gram_calls,
    "excess_risk_": buffered_calls,
    "boundary": boundary_calls,
    "boundary_backward": boundary_backward_calls,
}


def test_every_operator_is_checked() -> None:
    assert {schema.split("(")[0] for schema in SCHEMAS} == set(CALLS)


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(operator: str, layout: str, device: torch.device) -> None:
    for arguments in CALLS[operator](layout, device):
        torch.library.opcheck(getattr(OPS, operator).default, arguments)


# --- derivatives ------------------------------------------------------------------------------------------------------------------


def leaves(layout: str, device: Any) -> tuple[Sample, list[Tensor]]:
    """A small sample in float64 and its differentiable tensors."""
    make = maker(torch.float64, device)
    given = {
        "matrix": lambda: Sample([make(3, 4)], 3, stacked=True),
        "rows": lambda: Sample([make(2, 2) for _ in range(3)], 3),
        "gaps": lambda: Sample([make(2), None, None, None, None, make(3, 1), make(2), None, make(3, 1)], 3),
    }[layout]()
    present = [g.requires_grad_() for g in given.grads if g is not None]
    return given, present


@pytest.mark.parametrize("layout", ["matrix", "rows", "gaps"])
def test_gradcheck_of_gram(layout: str, device: torch.device) -> None:
    given, present = leaves(layout, device)

    def function(*tensors: Tensor) -> Tensor:
        left = list(tensors)
        K: Tensor = OPS.gram([None if g is None else left.pop(0) for g in given.grads], 3, given.stacked)
        return K

    assert torch.autograd.gradcheck(function, present)
    assert torch.autograd.gradgradcheck(function, present)


@pytest.mark.parametrize("layout", ["matrix", "rows"])
def test_gradcheck_of_combine(layout: str, device: torch.device) -> None:
    given, present = leaves(layout, device)
    w = weights_of(3, device).requires_grad_()

    def function(w: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(OPS.combine(list(tensors), w, given.stacked))

    assert torch.autograd.gradcheck(function, (w, *present))
    assert torch.autograd.gradgradcheck(function, (w, *present))


@pytest.mark.parametrize("stacked", [False, True])
def test_gradcheck_of_groups(stacked: bool, device: torch.device) -> None:
    make = maker(torch.float64, device, requires_grad=True)
    gaps = [make(2), None, make(1), None, make(3), None, make(2), None, make(1)]
    given = Sample([make(3, 2), make(3, 1), make(3, 2, 2)] if stacked else gaps, 3, stacked)
    present, groups = [g for g in given.grads if g is not None], [1, 0, 1]
    w = weights_of_groups(given, device).requires_grad_()

    def function(w: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = list(tensors)
        grads = [None if g is None else left.pop(0) for g in given.grads]
        K = OPS.gram(grads, 3, given.stacked, groups)
        return K, *OPS.combine(grads, w, given.stacked, groups)

    assert torch.autograd.gradcheck(function, (w, *present))
    assert torch.autograd.gradgradcheck(function, (w, *present))


def test_derivative_where_no_task_reaches_a_group(device: torch.device) -> None:
    a = maker(torch.float64, device, requires_grad=True)(4)
    OPS.gram([a, None, None, None, None, None], 2, False, [2, 0, 1])[2, 0, 0].backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())


def test_gradcheck_of_combine_with_gaps(device: torch.device) -> None:
    make = maker(torch.float64, device)
    a, b, w = make(3).requires_grad_(), make(2).requires_grad_(), weights_of(2, device).requires_grad_()

    def function(w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(OPS.combine([a, None, None, b], w))

    assert torch.autograd.gradcheck(function, (w, a, b))
    assert torch.autograd.gradgradcheck(function, (w, a, b))


def test_derivatives_come_in_the_type_of_each_gradient(device: torch.device) -> None:
    a = maker(torch.bfloat16, device, requires_grad=True)(40)
    b = maker(torch.float32, device, seed=1, requires_grad=True)(40)
    gs.gram([a, None, b]).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32)
    expected = 2 * (a.double() + b.double())
    torch.testing.assert_close(a.grad.double(), expected.detach(), rtol=2.0**-8, atol=2.0**-8)
    torch.testing.assert_close(b.grad.double(), expected.detach(), rtol=2.0**-8, atol=2.0**-8)


def test_the_weights_of_a_method_are_constants(device: torch.device) -> None:
    grads = maker(torch.float64, device, requires_grad=True)(3, 5)
    K = gs.gram(grads)
    assert K.requires_grad
    for name in FROM_GRAM:
        assert not gs.weights(K, name).requires_grad
        assert not gs.aggregate(grads, name).requires_grad


# --- version counters -------------------------------------------------------------------------------------------------------------


def saved_for_backward(out: Tensor) -> Tensor:
    """A graph that needs the values ``out`` has now."""
    x = torch.ones_like(out, requires_grad=True)
    return (x * out).sum()


@pytest.mark.parametrize("many", [False, True])
def test_writing_to_a_tensor_that_autograd_saved_is_noticed(many: bool, device: torch.device) -> None:
    """A kernel of the stable ABI does not raise version counters; without help, backward would use the new values silently."""
    make = maker(torch.float32, device)
    n = 70_000 if many else 30  # beside and beyond the short way for small matrices
    G, w = make(2, n), weights_of(2, device)
    writers: list[Callable[[Tensor], Any]] = [
        lambda out: gs.combine(G, w, out=out),
        lambda out: gs.combine(list(G), w, out=out),
        lambda out: gs.aggregate(G, "pcgrad", out=out),
        lambda out: gs.aggregate(list(G), "pcgrad", out=out),
        lambda out: gs.aggregate(G, "sum", out=out),
        lambda out: gs.aggregate([[row] for row in G], "mean", out=[out]),
        lambda out: ops.combine_([out], [G], w, True),
        lambda out: gs.aggregate(G, "median", out=out),
        lambda out: ops.coordinatewise_([out], [G], 2, True, "median", []),
        lambda out: ops.pcgrad_([out], [G], 2, True, None, None, False, 1.0, False),
        lambda out: gs.combine(G, w.expand(n, 2), out=out, samples=True),
        lambda out: gs.aggregate(G, "pcgrad", out=out, samples=True),
        lambda out: gs.aggregate(G, "sum", out=out, samples=True),
    ]
    for write in writers:
        out = make(n)
        loss = saved_for_backward(out)
        write(out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_reading_raises_no_version_counter(device: torch.device) -> None:
    G = maker(torch.float32, device)(2, 30)
    before = G._version
    gs.aggregate(G, "pcgrad")
    gs.combine(G, weights_of(2, device))
    assert G._version == before


# --- torch.compile ----------------------------------------------------------------------------------------------------------------


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    result: Callable[..., Any] = torch.compile(function, backend="aot_eager", fullgraph=True)
    return result


def test_compiled_gram_and_its_derivative(device: torch.device) -> None:
    G = maker(torch.float32, device, requires_grad=True)(3, 20)
    for form in (lambda g: g, lambda g: [g[0], None, g[1], g[2]], lambda g: [[g[0], g[1]], [None, g[2]]]):

        def function(g: Tensor, form: Callable[[Tensor], Any] = form) -> Tensor:
            return gs.gram(form(g)).square().sum()

        (eager,) = torch.autograd.grad(function(G), G)
        (traced,) = torch.autograd.grad(compiled(function)(G), G)
        torch.testing.assert_close(traced, eager)


def test_compiled_combine(device: torch.device) -> None:
    G, w = maker(torch.float32, device)(3, 20), weights_of(3, device)
    assert torch.equal(compiled(lambda g: gs.combine(g, w))(G), gs.combine(G, w))
    out = torch.zeros(20, device=device)
    assert torch.equal(compiled(lambda g, out: gs.combine(g, w, out=out) + 1)(G, out), gs.combine(G, w) + 1)
    assert torch.equal(out, gs.combine(G, w))


def test_compiled_groups(device: torch.device) -> None:
    G, H = maker(torch.float32, device, requires_grad=True)(3, 20), maker(torch.float32, device, 1)(3, 20)
    w = torch.stack([weights_of(3, device, seed) for seed in (1, 2)])

    def function(g: Tensor) -> tuple[Tensor, ...]:
        grads = [[row[:5], row[5:9], row[9:]] for row in g]
        K = gs.gram(grads, groups=["a", "b", "a"])
        return K, ops.pcgrad_weights(K.detach()), gs.gram(g, against=H), *gs.combine(grads, w, groups=["a", "b", "a"])

    eager, traced = function(G), compiled(function)(G)
    assert all(torch.equal(a, b) for a, b in zip(traced, eager, strict=True))
    derivatives = [torch.autograd.grad(sum(x.double().sum() for x in (r[0], *r[2:])), G)[0] for r in (eager, traced)]
    torch.testing.assert_close(*derivatives)


@pytest.mark.parametrize("method", FROM_GRAM)
def test_compiled_weights_and_aggregate(method: str, device: torch.device) -> None:
    G = maker(torch.float32, device)(3, 20)
    options = {"seed": 3} if "seed" in gs.methods()[method].options else {}
    if gs.methods()[method].family != "coordinatewise":
        weights = compiled(lambda K: gs.weights(K, method, **options))(gs.gram(G))
        assert torch.equal(weights, gs.weights(gs.gram(G), method, **options))
    assert torch.equal(compiled(lambda g: gs.aggregate(g, method, **options))(G), gs.aggregate(G, method, **options))
    assert torch.equal(compiled(lambda g: gs.aggregate(list(g), method, **options))(G), gs.aggregate(G, method, **options))


def test_compiled_random_orders_differ_from_call_to_call() -> None:
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [-1.0, -2.0]], dtype=torch.float64)
    weights = compiled(lambda K: gs.weights(K, "pcgrad"))
    assert len({tuple(weights(gs.gram(G)).tolist()) for _ in range(30)}) > 1
