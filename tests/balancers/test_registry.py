"""The registry of balancers: what it knows, how others add to it, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.balancers import Balancer, LossOnlyBalancer, register
from gradsurgery.balancers import registry as room


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(room._SPECS)
    yield
    room._SPECS.clear()
    room._SPECS.update(before)


def test_every_spec_is_complete() -> None:
    assert set(gs.balancers()) == {"uw", "gradnorm", "dwa", "rlw", "gls", "famo", "stch", "imtll", "uwso", "constant"}
    for name, spec in gs.balancers().items():
        assert spec.name == name == name.lower()
        assert spec.paper
        assert spec.summary
        assert spec.summary in (spec.cls.__doc__ or "")
        assert spec.properties <= room.PROPERTIES
        assert issubclass(spec.cls, Balancer)
        assert getattr(gs, spec.cls.__name__) is spec.cls
        assert spec.cls.__name__ in gs.__all__
        with pytest.raises(TypeError):
            spec.options["temp"] = 1.0  # type: ignore[index]
    assert dict(gs.balancers()["dwa"].options) == {"temp": 2.0, "window": None}


def test_a_changed_copy_is_no_registration() -> None:
    gs.balancers().clear()
    assert "uw" in gs.balancers()


def test_build_passes_options_and_refuses_others() -> None:
    balancer = gs.balancers()["dwa"].build(("a", "b"), temp=3.0)
    assert isinstance(balancer, gs.DynamicWeightAverage)
    assert (balancer.tasks, balancer.temp) == (("a", "b"), 3.0)
    with pytest.raises(TypeError, match=r"balancer 'dwa' has no option 'mu', 'nu'; it takes temp, window\."):
        gs.balancers()["dwa"].build(2, nu=1, mu=1)
    with pytest.raises(TypeError, match=r"balancer 'gls' has no option 'mu'; it takes no options\."):
        gs.balancers()["gls"].build(2, mu=1)


def test_others_register_by_decorator() -> None:
    @register("largest", paper="none", properties=("permutation_equivariant", "homogeneous"))
    class Largest(LossOnlyBalancer):
        """power-th power mean of the losses.

        More words.
        """

        def __init__(self, tasks: Sequence[str] | int, *, power: float = 2.0) -> None:
            super().__init__(tasks)
            self.power = power

        def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
            value = losses.pow(self.power).sum() ** (1 / self.power)
            return value, (losses.detach() / value.detach()) ** (self.power - 1)

    spec = gs.balancers()["largest"]
    assert (spec.summary, dict(spec.options)) == ("power-th power mean of the losses.", {"power": 2.0})
    losses = [torch.tensor(x, requires_grad=True) for x in (3.0, 4.0)]
    balancer = spec.build(2)
    total = balancer(losses)
    total.backward()
    assert total.item() == 5.0
    assert [x.grad.item() for x in losses] == pytest.approx([0.6, 0.8])  # type: ignore[union-attr]
    torch.testing.assert_close(balancer.weights, torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: a balancer 'uw' is registered already, by UncertaintyWeighting"):

        @register("uw", paper="none")
        class Other(Balancer):
            """Another."""

    assert gs.balancers()["uw"].cls is gs.UncertaintyWeighting


def test_an_unknown_property_is_refused() -> None:
    with pytest.raises(ValueError, match=r"properties: expected some of \[.*'homogeneous'.*\], found \['always_right'\]"):
        register("better", paper="none", properties=("homogeneous", "always_right"))
    assert "better" not in gs.balancers()
