"""The registry: what it knows, how others add to it, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Method, build, register
from gradsurgery.methods import registry as room
from gradsurgery.methods.registry import NO_STEP, Step


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(room._SPECS)
    yield
    room._SPECS.clear()
    room._SPECS.update(before)
    room._DEFAULTS.clear()
    room._cached.cache_clear()


def test_every_spec_is_complete() -> None:
    assert {"pcgrad", "sum", "mean"} <= set(gs.methods())
    for name, spec in gs.methods().items():
        assert spec.name == name == name.lower()
        assert spec.family in room.FAMILIES
        assert spec.paper
        assert spec.summary
        assert spec.summary in (spec.cls.__doc__ or "")
        assert spec.properties <= room.PROPERTIES
        assert spec.cls.spec is spec
        built = spec.build()
        for option, default in spec.options.items():
            assert getattr(built, option) == default
        with pytest.raises(TypeError):
            spec.options["order"] = "ascending"  # type: ignore[index]


def test_a_changed_copy_is_no_registration() -> None:
    gs.methods().clear()
    assert "pcgrad" in gs.methods()


def test_others_register_by_decorator() -> None:
    @register("norms", family="gram", paper="none", properties=("permutation_equivariant",))
    @dataclass(frozen=True)
    class Norms(Method):
        """w_t = power-th power of |g_t|.

        More words.
        """

        power: float = 1.0

        def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
            return gram.diagonal().sqrt() ** self.power

    spec = gs.methods()["norms"]
    assert (spec.summary, dict(spec.options)) == ("w_t = power-th power of |g_t|.", {"power": 1.0})
    G = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert gs.weights(gs.gram(G), "norms").tolist() == [5.0, 2.0]
    for form in (G, list(G), [[row] for row in G]):
        out = gs.aggregate(form, "norms", power=2.0)
        assert torch.equal(out[0] if isinstance(out, list) else out, 25 * G[0] + 4 * G[1])
    assert torch.equal(gs.aggregate(G, Norms(-1.0)), G[0] / 5 + G[1] / 2)  # type: ignore[arg-type]

    surgery = gs.GradientAggregator("norms", power=2.0)
    z = torch.zeros(2, requires_grad=True)
    a, b = surgery.split(z, 2)
    ((a * G[0]).sum() + (b * G[1]).sum()).backward()
    assert z.grad is not None
    assert torch.equal(z.grad, 25 * G[0] + 4 * G[1])


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: a method 'pcgrad' is registered already, by PCGrad"):

        @register("pcgrad", family="gram", paper="none")
        @dataclass(frozen=True)
        class Other(Method):
            """Another."""

    assert gs.methods()["pcgrad"].cls.__name__ == "PCGrad"


def test_an_unknown_property_is_refused() -> None:
    with pytest.raises(ValueError, match=r"properties: expected some of \[.*'non_conflicting'.*\], found \['always_right'\]"):
        register("better", family="gram", paper="none", properties=("non_conflicting", "always_right"))
    assert "better" not in gs.methods()


def test_build_shares_what_cannot_change() -> None:
    assert build("pcgrad") is build("pcgrad")
    assert build("pcgrad", seed=1) is build("pcgrad", seed=1)
    assert build("pcgrad", seed=1) is not build("pcgrad", seed=2)
    with pytest.raises(TypeError, match=r"seed: expected an integer or None, found float"):
        build("pcgrad", seed=1.0)
    order = torch.tensor([[0, 1], [1, 0]])
    assert build("pcgrad", order=order) is not build("pcgrad", order=order), "a tensor would be kept alive"
    method = build("sum")
    assert build(method) is method
    with pytest.raises(TypeError, match=r"options \['seed'\] cannot change the given Sum"):
        build(method, seed=1)
