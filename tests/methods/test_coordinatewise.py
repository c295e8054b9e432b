"""GradDrop, sign agreement, trimmed mean and median as methods: what they promise beside the registry's properties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.gradients import FEWEST, matrices
from oracles import coordinatewise as oracle
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.ops import coordinatewise as reference

METHODS = sorted(name for name, spec in gs.methods().items() if spec.family == "coordinatewise")


def graddrop(G: Tensor, U: Tensor, leak: Any = None) -> Tensor:
    out = gs.aggregate(G, "graddrop", uniform=U, leak=leak)
    assert isinstance(out, Tensor)
    return out


def shares(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P, the sum of the positive values, the sum of the negative ones) of every coordinate; P = 1/2 where all are zero."""
    up, down = G.clamp(min=0).sum(0), G.clamp(max=0).sum(0)
    size = up - down
    return torch.where(size > 0, up / size, 0.5), up, down


# --- GradDrop ---------------------------------------------------------------------------------------------------------------------


@given(G=matrices(), leak=st.sampled_from([None, 0.0, 0.25, 1.0]))
def test_graddrop_is_unbiased(G: Tensor, leak: float | None) -> None:
    """E_U[out], exactly: out is constant for U on either side of P, so two numbers and their lengths are the integral."""
    P, up, down = shares(G)
    below, above = graddrop(G, P / 2, leak), graddrop(G, (1 + P) / 2 * (1 - 2.0**-53), leak)
    mean = P * below + (1 - P) * above
    expected = (up + down) * (1 + (leak or 0.0)) - (leak or 0.0) * (P * up + (1 - P) * down)
    assert bool(((mean - expected).abs() <= 1e-12 * (up - down)).all())
    if not leak:
        assert bool(((mean - G.sum(0)).abs() <= 1e-12 * (up - down)).all())


@given(G=matrices(), seed=st.integers(-(2**63), 2**63 - 1))
def test_graddrop_lets_one_sign_through(G: Tensor, seed: int) -> None:
    _, up, down = shares(G)
    out = gs.aggregate(G, "graddrop", seed=seed)
    assert isinstance(out, Tensor)
    assert bool(((out == up) | (out == down) | ((up == 0) | (down == 0))).all())


@given(data=st.data())
def test_graddrops_mean_is_linear_under_scaling(data: st.DataObject) -> None:
    G = data.draw(matrices((2, 4)))
    c = torch.tensor(data.draw(st.lists(st.floats(0.125, 8.0), min_size=len(G), max_size=len(G))), dtype=torch.float64)

    def mean(rows: Tensor) -> Tensor:
        P, _, _ = shares(rows)
        return P * graddrop(rows, P / 2) + (1 - P) * graddrop(rows, (1 + P) / 2 * (1 - 2.0**-53))

    scaled = c[:, None] * G
    torch.testing.assert_close(mean(scaled), scaled.sum(0), rtol=1e-12, atol=1e-12 * float(scaled.abs().max()))


@pytest.mark.parametrize("leak", [0.3, (0.0, 0.5, 1.0), [1, 0, 0.25], torch.tensor([0.5, 0.25, 0.0])])
def test_graddrop_leaks(leak: Any, device: torch.device) -> None:
    G, U = torch.randn(3, 200, dtype=torch.float64), torch.rand(200, dtype=torch.float64)
    each = [leak] * 3 if isinstance(leak, float) else [float(value) for value in leak]
    expected = oracle.by_coordinate(list(G), lambda x, k: oracle.graddrop(x, float(U[k]), each))
    torch.testing.assert_close(graddrop(G.to(device), U, leak).cpu(), expected)


def test_graddrop_draws_anew_without_a_seed() -> None:
    G = torch.stack([torch.ones(64), -torch.ones(64)])
    torch.manual_seed(1)
    first, second = gs.aggregate(G, "graddrop"), gs.aggregate(G, "graddrop")
    assert not torch.equal(first, second)  # type: ignore[arg-type]
    torch.manual_seed(1)
    assert torch.equal(gs.aggregate(G, "graddrop"), first)  # type: ignore[arg-type]


def steps(surgery: gs.GradientAggregator, count: int) -> list[Tensor]:
    """The trunk's gradient where the tasks pull each coordinate by +1 and -1."""
    results = []
    for _ in range(count):
        z = torch.zeros(50, requires_grad=True)
        a, b = surgery.split(z, 2)
        (a.sum() - b.sum()).backward()
        assert z.grad is not None
        results.append(z.grad)
    return results


def test_graddrop_counts_steps_and_resumes() -> None:
    surgery = gs.GradientAggregator("graddrop", seed=77)
    key = torch.tensor([77, 0])
    for step, result in enumerate(steps(surgery, 4)):
        key[1] = step
        assert torch.equal(result.double(), torch.sign(0.5 - reference.uniform_numbers(key, 0, 50)))
    state = copy.deepcopy(surgery.state_dict())
    expected = steps(surgery, 3)
    resumed = gs.GradientAggregator("graddrop", seed=5)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(steps(resumed, 3), expected, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"leak": -0.1}, ValueError, r"leak: expected a finite number >= 0 and <= 1, found -0.1"),
        ({"leak": (0.5, torch.nan)}, ValueError, r"leak\[1\]: expected a finite number >= 0 and <= 1, found nan"),
        ({"leak": (0.5, 0.5)}, ValueError, r"leak: expected 3 numbers, one a task, found 2"),
        ({"seed": 0.5}, TypeError, r"seed: expected an integer or None, found float"),
        ({"uniform": [0.5]}, ValueError, r"uniform: expected a floating tensor \[N\], found list"),
        ({"uniform": torch.zeros(5)}, ValueError, r"uniform: expected 4 numbers, one a coordinate, found 5"),
        ({"uniform": torch.zeros(4), "seed": 1}, ValueError, r"seed: expected None beside uniform"),
        ({"uniform": torch.tensor([0.5, 0.0, 1.0, 0.5])}, ValueError, r"uniform: expected numbers in \[0, 1\), found 1.0"),
        ({"uniform": torch.tensor([0.5, -0.25, 0.5, 0.5])}, ValueError, r"uniform: expected numbers in \[0, 1\), found -0.25"),
        ({"uniform": torch.tensor([0.5, torch.nan, 0.5, 0.5])}, ValueError, r"uniform: expected numbers in \[0, 1\), found nan"),
        ({"uniform": torch.zeros(4, dtype=torch.int64)}, ValueError, r"uniform: expected a floating tensor"),
    ],
)
def test_options_of_graddrop(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.aggregate(torch.ones(3, 4), "graddrop", **options)


# --- the others -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sign_agreement", {"threshold": 1.5}, r"threshold: expected a finite number >= 0 and <= 1, found 1.5"),
        ("sign_agreement", {"threshold": torch.nan}, r"threshold: expected a finite number >= 0 and <= 1, found nan"),
        ("sign_agreement", {"reduction": "max"}, r"reduction: expected one of 'sum', 'mean', found 'max'"),
        ("trimmed_mean", {"trim": -1}, r"trim: expected an integer >= 0 and <= 2147483647, found -1"),
        ("trimmed_mean", {"trim": 2}, r"trim: expected less than half of the 3 tasks that have a gradient, found 2"),
    ],
)
def test_options(method: str, options: dict[str, Any], message: str) -> None:
    out = torch.full((4,), 7.0)
    with pytest.raises(ValueError, match=message):
        gs.aggregate(torch.ones(3, 4), method, out=out, **options)
    assert torch.equal(out, torch.full((4,), 7.0))


def test_tasks_without_a_gradient_are_not_there(device: torch.device) -> None:
    """Neither zeros nor votes: statistics run over the tasks that have a gradient at a position."""
    a, b, c = (torch.tensor([value, -value], device=device) for value in (1.0, 2.0, 6.0))
    grads = [[a, None], None, [b, b], [c, c]]
    for method, first, second in (("median", 2.0, 4.0), ("sign_agreement", 3.0, 4.0), ("graddrop", 9.0, 8.0)):
        out = gs.aggregate(grads, method)
        assert [row.tolist() for row in out] == [[first, -first], [second, -second]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"less than half of the 2 tasks that have a gradient at tensor 1, found 1"):
        gs.aggregate(grads, "trimmed_mean")
    (only,) = gs.aggregate([[a], None, [b], [c]], "trimmed_mean")
    assert torch.equal(only, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_there_are_no_weights(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' treats every coordinate by itself and has no weights.*aggregate"):
        gs.weights(torch.eye(3, dtype=torch.float64), name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("diagnostics", [False, True])
def test_in_an_aggregator(name: str, diagnostics: bool) -> None:
    G = torch.randn(3, 40)
    options = {"seed": 4} if name == "graddrop" else {}
    surgery = gs.GradientAggregator(name, diagnostics=diagnostics, **options)
    z = torch.zeros(40, requires_grad=True)
    sum((view * row).sum() for view, row in zip(surgery.split(z, 3), G, strict=True)).backward()  # type: ignore[union-attr]
    assert torch.equal(z.grad, gs.aggregate(G, name, **options))  # type: ignore[arg-type]
    assert surgery.weights is None
    statistics = surgery.statistics()
    with pytest.raises(RuntimeError, match="has no weights"):
        _ = statistics.weights
    with pytest.raises(RuntimeError, match=r"no weights|no K"):
        _ = statistics.norm
    assert statistics.status is None
    if diagnostics:
        assert torch.equal(statistics.gram, gs.gram(G))
        assert {"norm/0", "cosine/0-1", "conflicts", "nonfinite"} <= set(statistics.scalars())
        assert not {"norm", "weight/0"} & set(statistics.scalars())
    else:
        assert statistics.scalars() == {"absent": 0.0}
        for read in (lambda: statistics.gram, lambda: statistics.norms, lambda: statistics.conflicts):
            with pytest.raises(RuntimeError, match=r"no K was computed.*diagnostics=True"):
                read()


def test_balancers_hear_of_k_only_where_it_is_computed() -> None:
    surgery = gs.GradientAggregator("median")
    with pytest.raises(ValueError, match=r"'median' .*computes no K.*diagnostics=True"):
        surgery.register_step_hook(lambda statistics, K: None)
    surgery, seen = gs.GradientAggregator("median", diagnostics=True), []
    surgery.register_step_hook(lambda statistics, K: seen.append(K))
    z = nn.Parameter(torch.zeros(6))
    sum(view.sum() for view in surgery.split(z, 3)).backward()  # type: ignore[union-attr]
    assert torch.equal(seen[0], torch.full((3, 3), 6.0, dtype=torch.float64))


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_every_coordinate_is_by_itself(name: str, data: st.DataObject) -> None:
    """In another order of coordinates, or cut into parts, the same comes out: layer-wise is whole-model."""
    G = data.draw(matrices((FEWEST.get(name, 1), 6)))
    N = G.shape[1]
    U = torch.tensor(data.draw(st.lists(st.floats(0, 0.999), min_size=N, max_size=N)), dtype=torch.float64)
    order = torch.tensor(data.draw(st.permutations(range(N))))

    def out(part: Tensor) -> Tensor:
        result = gs.aggregate(G[:, part], name, **({"uniform": U[part]} if name == "graddrop" else {}))
        assert isinstance(result, Tensor)
        return result

    whole = out(torch.arange(N))
    assert torch.equal(out(order), whole[order])
    assert torch.equal(torch.cat([out(part) for part in order.split(2)]), whole[order])
