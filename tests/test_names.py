"""What is said of names that are not there."""

from __future__ import annotations

import pytest

import gradsurgery as gs


@pytest.mark.parametrize(("name", "meant"), [("pcgrd", "pcgrad"), ("PCGrad", "pcgrad"), ("nash_mtl", "nashmtl")])
def test_a_misspelt_method(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match="method: ") as raised:
        gs.GradientAggregator(name)
    known = ", ".join(sorted(gs.methods()))
    assert str(raised.value) == f"method: did you mean {meant!r}? Expected one of {known}, found {name!r}."


def test_a_method_like_no_other() -> None:
    with pytest.raises(ValueError, match="method: ") as raised:
        gs.GradientAggregator("nosuch")
    assert str(raised.value) == f"method: expected one of {', '.join(sorted(gs.methods()))}, found 'nosuch'."


def test_an_optimizer_is_no_method() -> None:
    with pytest.raises(TypeError, match="wraps") as raised:
        gs.GradientAggregator(gs.PCGrad)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "method: expected a method's name or a built method, found the class PCGrad, an optimizer. "
        "PCGrad wraps an optimizer; name the method in lower case, such as 'pcgrad'."
    )


def test_a_misspelt_balancer() -> None:
    known = ", ".join(sorted(gs.balancers()))
    with pytest.raises(KeyError, match="balancer: ") as raised:
        gs.balancers()["GradNorms"]
    assert raised.value.args == (f"balancer: did you mean 'gradnorm'? Expected one of {known}, found 'GradNorms'.",)
    with pytest.raises(KeyError, match="balancer: ") as raised:
        gs.balancers()["nosuch"]
    assert raised.value.args == (f"balancer: expected one of {known}, found 'nosuch'.",)
    assert gs.balancers().get("nosuch") is None
