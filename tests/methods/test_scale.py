"""No method knows a length that counts as small: gradients of any scale, in every type, give the same result at that scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from methods.gradients import FEWEST
from tolerances import TOLERANCES
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Method, register
from gradsurgery.methods import registry as room
from gradsurgery.methods.registry import NO_STEP, Step

METHODS = sorted(gs.methods())
# Exponents of two: 1e-6 to 1e6, and in float16 as far as results neither overflow nor lose digits as subnormal numbers.
EXPONENTS = {torch.float32: range(-20, 21, 4), torch.bfloat16: range(-20, 21, 4), torch.float16: range(-9, 10, 3)}
OPTIONS = {"sign_agreement": {"threshold": 0.5}}  # eight tasks hardly ever agree wholly
SOLVED = 1e-10  # of Σ |w_t g_t|: solvers may round otherwise at another scale
TASKS = (2, 3, 5, 8)


def counts(name: str) -> Iterator[int]:
    return (T for T in TASKS if FEWEST.get(name, 1) <= T)


def gradients(tasks: int, dtype: torch.dtype) -> Tensor:
    """[T, 40] with conflicts and without ties; entries from 2^-4 to 8, so that they can be scaled without rounding."""
    generator = torch.Generator().manual_seed(tasks)
    G = torch.randn(tasks, 40, generator=generator, dtype=torch.float64)
    G += 0.5 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(tasks)[:tasks, None]
    return (G.sign() * G.abs().clamp(2.0**-4, 8.0)).to(dtype)


def aggregate(name: str, G: Tensor, dtype: torch.dtype) -> Tensor:
    spec = gs.methods()[name]
    losses = torch.linspace(0.5, 2, len(G), dtype=torch.float64) if "losses" in spec.needs else None
    out = torch.empty(G.shape[1:], dtype=dtype)
    options = OPTIONS.get(name, {}) | ({"seed": 1} if "seed" in spec.options else {})
    gs.aggregate(G, name, losses=losses, out=out, **options)
    return out


def magnitude(name: str, G: Tensor) -> Tensor:
    """Σ |w_t g_t|, coordinate by coordinate; for methods without weights of K, as if all were ones. [N]"""
    spec, rows = gs.methods()[name], G.double().abs()
    if spec.family not in ("gram", "scalarization"):
        return rows.sum(0)
    return gs.weights(gs.gram(G), name, **({"seed": 1} if "seed" in spec.options else {})).abs() @ rows


@pytest.mark.parametrize("dtype", EXPONENTS, ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if gs.methods()[name].degree is not None])
def test_the_result_scales_with_the_gradients(name: str, dtype: torch.dtype) -> None:
    degree = gs.methods()[name].degree
    assert degree is not None
    for T in counts(name):
        G = gradients(T, dtype)
        exact, around = aggregate(name, G, torch.float64), magnitude(name, G)
        assert float(exact.norm()) > 1e-3 * float(G.double().norm(dim=1).min()) * min(1.0, float(around.max()))
        for exponent in EXPONENTS[dtype]:
            scale = 2.0**exponent
            scaled = scale * G
            assert torch.equal(scaled.double(), scale * G.double())
            expected, allowed = scale**degree * exact, scale**degree * SOLVED * around
            assert bool(((aggregate(name, scaled, torch.float64) - expected).abs() <= allowed).all()), f"T={T} at 2^{exponent}"
            stored = aggregate(name, scaled, dtype)
            least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            allowed = allowed + TOLERANCES[dtype].rounding * expected.abs() + least
            assert bool(((stored.double() - expected).abs() <= allowed).all()), f"T={T} at 2^{exponent}, stored in {dtype}"


def test_a_constant_beside_a_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SPECS", dict(room._SPECS))
    monkeypatch.setattr(room, "_DEFAULTS", {})

    @register("fudged", family="gram", paper="none", degree=0.0)
    @dataclass(frozen=True)
    class Fudged(Method):
        """w_t = 1 / (|g_t| + 1e-8)."""

        def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
            return 1 / (gram.diagonal().sqrt() + 1e-8)

    with pytest.raises(AssertionError, match=r"T=2 at 2\^-20"):
        test_the_result_scales_with_the_gradients("fudged", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_rows_of_very_different_lengths_give_a_finite_result(name: str, dtype: torch.dtype) -> None:
    for T in counts(name):
        G = gradients(T, torch.float64)
        lengths = torch.logspace(-8, 8, T, dtype=torch.float64)
        for seed in range(5):
            order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
            out = aggregate(name, (lengths[order, None] * G).to(dtype), dtype)
            assert bool(out.isfinite().all()), f"T={T} {lengths[order].tolist()}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("exponent", [-40, -20, 20, 40])
def test_a_short_and_a_long_task_give_a_finite_result(name: str, exponent: int) -> None:
    for T in counts(name):
        for t in range(T):
            G = gradients(T, torch.float32)
            G[t] *= 2.0**exponent
            assert bool(aggregate(name, G, torch.float32).isfinite().all())
