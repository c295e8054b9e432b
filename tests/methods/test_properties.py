"""Every property that a method declares is proven for it over random gradients; a property without a proof here fails the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from methods.gradients import CALM, FEWEST, FROM_GRAM, assert_equal_vectors, conflicting, magnitude, matrices, positive
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods.registry import PROPERTIES, MethodSpec


@dataclass(frozen=True)
class Run:
    """A method with options, as a function of the gradients."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        return self.options.get("order") == "random"

    @property
    def tasks(self) -> tuple[int, int]:
        """How many tasks to draw."""
        return FEWEST.get(self.name, 1), 6

    def __call__(self, G: Tensor) -> tuple[Tensor, Tensor]:
        """(w, out), through the public functions; ones for w where a method has none, as none lets more through than the sum."""
        if gs.methods()[self.name].family == "coordinatewise":
            combined = gs.aggregate(G, self.name, **self.options)
            assert isinstance(combined, Tensor)
            return torch.ones(len(G), dtype=torch.float64), combined
        w = gs.weights(gs.gram(G), self.name, **self.options)
        out = gs.combine(G, w)
        assert isinstance(out, Tensor)
        aggregated = gs.aggregate(G, self.name, **self.options)
        assert isinstance(aggregated, Tensor)
        assert torch.equal(aggregated, out)
        return w, out


Proof = Callable[[Run, st.DataObject], None]

PROOFS: dict[str, Proof] = {}


def proves(proof: Proof) -> Proof:
    PROOFS[proof.__name__] = proof
    return proof


def variants(spec: MethodSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """The options under which a method's declared properties must hold; those that no random draw may disturb are fixed."""
    if spec.name == "pcgrad":
        for order in ("ascending", "random"):
            for include_self in (False, True):
                yield f"{order}{'+self' if include_self else ''}", {"order": order, "include_self": include_self, "seed": 3}
    elif spec.name == "gradvac":
        for order in ("ascending", "random"):
            yield order, {"order": order, "seed": 3}
    else:
        options = {"seed": 3} if "seed" in spec.options else {}
        yield "calm" if spec.name in CALM else "defaults", CALM.get(spec.name, options)


@proves
def permutation_equivariant(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks))
    order = torch.tensor(data.draw(st.permutations(range(len(G)))))
    (w, out), (_, permuted_out) = run(G), run(G[order])
    assert_equal_vectors(permuted_out, out, magnitude(w, G))  # of dependent gradients, w itself may be badly determined


@proves
def linear_under_scaling(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks))
    T = len(G)
    c1, c2 = data.draw(positive(T)), data.draw(positive(T))
    a, b = (float(x) for x in data.draw(positive(2)))
    (w1, out1), (w2, out2) = run(c1[:, None] * G), run(c2[:, None] * G)
    w, out = run((a * c1 + b * c2)[:, None] * G)
    scale = sum(
        magnitude(*pair) for pair in ((w, (a * c1 + b * c2)[:, None] * G), (a * w1, c1[:, None] * G), (b * w2, c2[:, None] * G))
    )
    assert_equal_vectors(out, a * out1 + b * out2, scale)


@proves
def sum_without_conflict(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks, conflicts=False))
    assert not conflicting(G)
    w, out = run(G)
    assert torch.equal(w, torch.ones_like(w))
    assert_equal_vectors(out, G.sum(0), magnitude(w, G))


@proves
def weights_at_least_one(run: Run, data: st.DataObject) -> None:
    w, _ = run(data.draw(matrices(run.tasks)))
    assert bool((w >= 1).all())


@proves
def zero_row_neutral(run: Run, data: st.DataObject) -> None:
    # A random order of T + 1 tasks is another than that of T; with two tasks beside the zero row there is but one to meet.
    G = data.draw(matrices(tasks=(run.tasks[0], 2 if run.random else 5)))
    at = data.draw(st.integers(0, len(G)))
    w, out = run(G)
    extended, same = run(torch.cat([G[:at], torch.zeros_like(G[:1]), G[at:]]))
    torch.testing.assert_close(torch.cat([extended[:at], extended[at + 1 :]]), w)
    assert_equal_vectors(same, out, magnitude(w, G))


@proves
def mean_without_conflict(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks, conflicts=False))
    w, out = run(G)
    assert_equal_vectors(out, G.mean(0), magnitude(w, G))


@proves
def weights_nonnegative(run: Run, data: st.DataObject) -> None:
    w, _ = run(data.draw(matrices(run.tasks)))
    assert bool((w >= 0).all())


@proves
def weights_sum_to_one(run: Run, data: st.DataObject) -> None:
    w, _ = run(data.draw(matrices(run.tasks)))
    assert abs(float(w.sum()) - 1) <= 1e-12 * float(w.abs().sum())


@proves
def one_task_identity(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices((1, 1)))
    w, out = run(G)
    assert_equal_vectors(out, G[0], magnitude(w, G))


@proves
def non_conflicting(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks))
    w, out = run(G)
    assert bool((G @ out >= -1e-9 * magnitude(w, G) * G.norm(dim=1)).all())


def direction(out: Tensor, w: Tensor, G: Tensor) -> Tensor:
    """out / |out|, where cancellation leaves it at least six digits."""
    norm = float(out.norm())
    assume(norm > 1e-6 * magnitude(w, G))
    return out / norm


@proves
def direction_invariant_to_row_scaling(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks, scaled=False))
    assume(bool(G.any(dim=1).all()))
    scaled = data.draw(positive(len(G)))[:, None] * G
    (w, out), (scaled_w, scaled_out) = run(G), run(scaled)
    assert_equal_vectors(direction(scaled_out, scaled_w, scaled), direction(out, w, G), 1.0, 1e-6)


@proves
def duplicate_invariant_direction(run: Run, data: st.DataObject) -> None:
    G = data.draw(matrices(run.tasks))
    (w, out), (twice_w, twice) = run(G), run(torch.cat([G, G]))
    assert_equal_vectors(direction(twice, twice_w, torch.cat([G, G])), direction(out, w, G), 1.0, 1e-6)


# Methods with buffers have no weights of a Gram matrix; test_buffered proves their properties over whole sequences.
SPECS = {name: spec for name, spec in gs.methods().items() if spec.family != "buffered"}
CASES = [
    pytest.param(name, options, declared, id=f"{name}-{label}-{declared}")
    for name, spec in SPECS.items()
    for label, options in variants(spec)
    for declared in sorted(spec.properties)
]


@pytest.mark.parametrize(("name", "options", "declared"), CASES)
@given(data=st.data())
def test_declared_property(name: str, options: dict[str, Any], declared: str, data: st.DataObject) -> None:
    PROOFS[declared](Run(name, options), data)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.degree is not None])
@given(data=st.data())
def test_homogeneous_of_its_degree(name: str, data: st.DataObject) -> None:
    """A(s G) = s^degree A(G)."""
    spec = gs.methods()[name]
    run = Run(name, {"seed": 1} if "seed" in spec.options else CALM.get(name, {}))
    G, s = data.draw(matrices(run.tasks)), data.draw(st.floats(1e-6, 1e6))
    w, out = run(G)
    _, scaled = run(s * G)
    assert spec.degree is not None
    assert_equal_vectors(scaled, s**spec.degree * out, s**spec.degree * magnitude(w, G))


def test_every_property_has_a_proof() -> None:
    assert set(PROOFS) == set(PROPERTIES)


LIARS: dict[str, Callable[[Tensor], Tensor]] = {
    "permutation_equivariant": lambda K: torch.arange(1.0, len(K) + 1, dtype=K.dtype),
    "linear_under_scaling": lambda K: K.diagonal().sqrt(),
    "sum_without_conflict": lambda K: K.new_full((len(K),), 1 / len(K)),
    "weights_at_least_one": lambda K: (K < 0).any(1).to(K) + 0.5,
    "zero_row_neutral": lambda K: K.new_full((len(K),), 1 / len(K)),
    "mean_without_conflict": lambda K: K.new_ones(len(K)),
    "weights_nonnegative": lambda K: K[0].clone(),
    "weights_sum_to_one": lambda K: K.new_ones(len(K)),
    "one_task_identity": lambda K: K.new_full((len(K),), 0.5),
    "non_conflicting": lambda K: K.new_ones(len(K)),
    "direction_invariant_to_row_scaling": lambda K: K.new_ones(len(K)),
    "duplicate_invariant_direction": lambda K: torch.arange(1.0, len(K) + 1, dtype=K.dtype),
}


@pytest.mark.parametrize("declared", sorted(PROPERTIES))
def test_a_proof_refuses_a_method_without_the_property(declared: str) -> None:
    class Liar(Run):
        def __call__(self, G: Tensor) -> tuple[Tensor, Tensor]:
            w = LIARS[declared](G @ G.T)
            return w, w @ G

    @settings(phases=[Phase.generate])  # any counterexample will do, however large
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        PROOFS[declared](Liar("liar"), data)

    with pytest.raises(AssertionError):
        attempt()


# What every method whose weights come from K alone has, declared or not.


@pytest.mark.parametrize("name", FROM_GRAM)
@given(data=st.data())
def test_in_the_span_equivariant_under_rotation_and_blind_to_padding(name: str, data: st.DataObject) -> None:
    options = {"seed": 1} if "seed" in gs.methods()[name].options else {}
    run = Run(name, options)
    G = data.draw(matrices(run.tasks, scaled=False))
    w, out = run(G)
    assert_equal_vectors(out, w @ G, magnitude(w, G))
    N = G.shape[1]
    square = torch.randn(N, N, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))), dtype=torch.float64)
    Q, _ = torch.linalg.qr(square)
    K, rotated_K = gs.gram(G), gs.gram(G @ Q)
    assume(not bool(((K.abs() < 1e-9) & (K != 0)).any()))
    torch.testing.assert_close(rotated_K, K, atol=1e-9, rtol=1e-9)
    _, rotated = run(G @ Q)
    assert_equal_vectors(rotated, out @ Q, magnitude(w, G) + float(G.norm()))
    padded_w, padded = run(torch.cat([G, torch.zeros(len(G), 3, dtype=torch.float64)], dim=1))
    torch.testing.assert_close(padded_w, w)
    assert_equal_vectors(padded[:N], out, magnitude(w, G))
    assert not padded[N:].any()


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if "one_task_identity" in spec.properties])
def test_one_task_keeps_its_gradient(name: str, device: torch.device) -> None:
    g = torch.randn(20, device=device)
    torch.testing.assert_close(gs.aggregate([g], name), g, rtol=1e-6, atol=0)
