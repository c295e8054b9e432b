"""What is shared, what gets gradients at all, by which parameters the decision is made, and surgery group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES
from parameters.comparison import aggregator, ascending, assert_gradients, assert_same_gradients, grads
from parameters.models import TASKS, Network, build
from torch import Tensor, nn

import gradsurgery as gs

GIVEN: dict[str, Callable[[Any], Any]] = {
    "module": lambda network: network.trunk,
    "parameters": lambda network: network.trunk.parameters(),
    "list": lambda network: list(network.trunk.parameters()),
    "named parameters": lambda network: network.trunk.named_parameters(),
    "list of names": lambda network: list(network.trunk.named_parameters()),
}


@pytest.mark.parametrize("kind", ["perceptron", "convolutions", "partly-frozen"])
@pytest.mark.parametrize("form", GIVEN)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_what_is_given_is_what_is_found(kind: str, form: str, options: dict[str, Any]) -> None:
    network, plain = build(kind), build(kind)
    aggregator().backward(network.losses(), shared=GIVEN[form](network), **options)
    rows = oracle.separate(plain, plain.losses)
    assert oracle.shared_names(rows, plain)[0].startswith("trunk.")
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("form", GIVEN)
def test_collecting_takes_the_same(form: str) -> None:
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    surgery.collect(network.losses(0), shared=GIVEN[form](network))
    surgery.backward(network.losses(1), shared=GIVEN[form](network))
    rows = oracle.added(*(oracle.separate(plain, lambda seed=seed: plain.losses(seed)) for seed in range(2)))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_what_was_collected_knows_what_is_shared() -> None:
    """A parameter that one task alone reached, as it is shared, and one that all reach, as it is not."""
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator()
    chosen = [network.trunk[0].weight, network.heads["a"].weight]  # type: ignore[index]
    surgery.collect(network.losses(0), shared=chosen)
    surgery.backward()
    rows = oracle.separate(plain, plain.losses)
    names = {"trunk.0.weight", "heads.a.weight"}
    assert_gradients(network, oracle.gradients(rows, plain, ascending, shared=names), rows)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, options) for kind in ("overlapping-heads", "unet") for options in ({}, {"memory": "low"}, {"passes": "batched"})),
        *((kind, options) for kind in ("pyramid", "tied") for options in ({}, {"memory": "low"})),
    ],
)
def test_what_is_not_shared_gets_the_plain_sum(kind: str, options: dict[str, Any]) -> None:
    """Every second parameter is shared, whoever reaches it."""
    network, plain = build(kind), build(kind)
    names = [name for name, _ in network.named_parameters()][::2]
    aggregator().backward(network.losses(), shared=[network.get_parameter(name) for name in names], **options)
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, ascending, shared=names)
    assert_gradients(network, expected, rows)
    summed = oracle.gradients(rows, plain, lambda G: G.sum(0))
    left = set(expected) - set(names)
    assert sum(sum(name in row for row in rows.values()) > 1 for name in left) >= 1
    for name in left:
        torch.testing.assert_close(network.get_parameter(name).grad, summed[name], rtol=1e-12, atol=1e-14)


def test_nothing_is_to_be_shared() -> None:
    """Said in so many words, every parameter gets the plain sum of its tasks' gradients."""
    network, plain = build("tied"), build("tied")
    aggregator().backward(network.losses(), shared=[])
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, lambda G: G.sum(0)), rows)


def test_the_order_of_what_is_given_does_not_matter() -> None:
    one, other = build("unet"), build("unet")
    for network, parameters in ((one, list(one.parameters())), (other, list(other.parameters())[::-1])):
        aggregator().backward(network.losses(), shared=parameters)
    for name, g in grads(one).items():
        torch.testing.assert_close(other.get_parameter(name).grad, g, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shared", ["found", "module"])
def test_frozen_and_unused_parameters_keep_none(shared: str) -> None:
    network = build("partly-frozen")
    aggregator().backward(network.losses(), shared=None if shared == "found" else network)
    for name in ("trunk.2.weight", "trunk.unused", "heads.b.bias", "nobody.weight", "nobody.bias"):
        assert network.get_parameter(name).grad is None, name
    assert network.get_parameter("trunk.0.weight").grad is not None


def test_leaves_that_are_no_parameters() -> None:
    """An input that asks for its gradient is shared where it is found, and is not where the parameters are given."""
    for shared in (None, "trunk"):
        network, plain = build("perceptron"), build("perceptron")
        for net in (network, plain):
            x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            net.register_parameter("x", nn.Parameter(x))
            net.draw = lambda *shape, net=net, draw=net.draw: net.x if shape == (7, 4) else draw(*shape)
        aggregator().backward(network.losses(), shared=network.trunk if shared else None)
        rows = oracle.separate(plain, plain.losses)
        names = [name for name, _ in plain.named_parameters() if name.startswith("trunk")] if shared else None
        assert_gradients(network, oracle.gradients(rows, plain, ascending, shared=names), rows)
        assert network.x.grad is not None


# --- inputs -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["found", "module"])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_only_the_inputs_get_gradients(shared: str, options: dict[str, Any]) -> None:
    network, plain = build("perceptron"), build("perceptron")
    names = ["trunk.0.weight", "trunk.2.bias", "heads.a.weight", "heads.c.bias"]
    inputs = [network.get_parameter(name) for name in names]
    aggregator().backward(network.losses(), shared=network.trunk if shared == "module" else None, inputs=inputs, **options)
    rows = {task: {n: g for n, g in row.items() if n in names} for task, row in oracle.separate(plain, plain.losses).items()}
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_inputs_of_one_task_and_of_a_window() -> None:
    network, plain = build("perceptron"), build("perceptron")
    inputs = [network.trunk[0].weight, network.heads["b"].bias]  # type: ignore[index]
    aggregator().backward({"b": network.losses()["b"]}, inputs=inputs)
    plain.losses()["b"].backward(inputs=[plain.trunk[0].weight, plain.heads["b"].bias])  # type: ignore[index]
    assert_same_gradients(network, plain)
    network.zero_grad()
    surgery = aggregator()
    surgery.collect(network.losses(0), inputs=inputs)
    surgery.backward(network.losses(1), inputs=inputs)
    assert grads(network).keys() == {"trunk.0.weight", "heads.b.bias"}


# --- the decision on some of the parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pcgrad", "mgda", "cagrad", "upgrad", "imtlg", "nashmtl"])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
@pytest.mark.parametrize("shared", ["found", "module"])
def test_the_decision_on_some_parameters(method: str, options: dict[str, Any], shared: str) -> None:
    """w is the method's for K of these alone, and all that is shared gets sum_t w_t g_t."""
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator(method)
    given = network.trunk if shared == "module" else None
    surgery.backward(network.losses(), shared=given, gram_on=network.trunk[2], **options)  # type: ignore[index]
    rows = oracle.separate(plain, plain.losses)
    G = oracle.matrix(rows, ["trunk.2.weight", "trunk.2.bias"], TASKS)
    settings = {"order": "ascending"} if method == "pcgrad" else {}
    w = gs.weights(G @ G.T, method, **settings)
    whole = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    assert not torch.allclose(w, gs.weights(whole @ whole.T, method, **settings), rtol=1e-4)
    torch.testing.assert_close(w @ G, ORACLES[method](G), rtol=1e-6, atol=1e-8)
    assert surgery.weights is not None
    torch.testing.assert_close(surgery.weights, w, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-13)
    assert_gradients(network, oracle.gradients(rows, plain, lambda g: surgery.weights @ g), rows)  # type: ignore[operator]


@pytest.mark.parametrize("form", ["module", "parameters", "list"])
def test_the_decision_on_parameters_that_are_named_in_any_form(form: str) -> None:
    one, other = build("perceptron"), build("perceptron")
    last = one.trunk[2]  # type: ignore[index]
    aggregator().backward(
        one.losses(), gram_on={"module": last, "parameters": last.parameters(), "list": list(last.parameters())}[form]
    )
    aggregator().backward(other.losses(), gram_on=other.trunk[2])  # type: ignore[index]
    assert_same_gradients(one, other)


def test_the_decision_on_all_parameters_is_the_decision() -> None:
    network, plain = build("perceptron"), build("perceptron")
    aggregator().backward(network.losses(), gram_on=network.trunk)
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_one_task_needs_no_decision() -> None:
    network, plain = build("perceptron", torch.float32), build("perceptron", torch.float32)
    aggregator().backward({"a": network.losses()["a"]}, gram_on=network.trunk[2])  # type: ignore[index]
    plain.losses()["a"].backward()
    assert_same_gradients(network, plain)


# --- groups -----------------------------------------------------------------------------------------------------------------------

LAYERS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
GROUPS: dict[str, tuple[Any, dict[str, list[str]]]] = {
    "layer": ("layer", LAYERS),
    "tensor": ("tensor", {name: [name] for names in LAYERS.values() for name in names}),
    "function": (lambda name: name.endswith("bias"), {"False": ["0.weight", "2.weight"], "True": ["0.bias", "2.bias"]}),
}


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("form", ["module", "named parameters", "list of names"])
@pytest.mark.parametrize("method", ["pcgrad", "mgda", "cagrad"])
def test_each_group_by_itself(by: str, form: str, method: str) -> None:
    network, plain = build("perceptron"), build("perceptron")
    label, groups = GROUPS[by]
    surgery = aggregator(method, group_by=label)
    surgery.backward(network.losses(), shared=GIVEN[form](network))
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, lambda G: G.sum(0))
    for names in groups.values():
        inside = [f"trunk.{name}" for name in names]
        by_itself = oracle.gradients(rows, plain, ORACLES[method], shared=inside)
        expected |= {name: by_itself[name] for name in inside}
    assert_gradients(network, expected, rows)
    assert sorted(surgery.statistics().groups) == sorted(groups)
    assert surgery.weights is not None
    assert surgery.weights.shape == (len(groups), len(TASKS))


def test_names_are_those_that_are_given() -> None:
    network = build("perceptron")
    heard: list[str] = []

    def by(name: str) -> str:
        heard.append(name)
        return "all"

    named = [(f"module.{name}", p) for name, p in network.trunk.named_parameters()]  # type: ignore[union-attr]
    aggregator(group_by=by).backward(network.losses(), shared=named)
    assert sorted(heard) == sorted(name for name, _ in named)


def test_a_group_that_two_tasks_of_three_reach() -> None:
    network, plain = build("chained-features"), build("chained-features")
    surgery = aggregator(group_by="layer")
    shared = [(name, p) for name, p in network.named_parameters() if not name.startswith("heads")]
    surgery.backward(network.losses(), shared=shared)
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, lambda G: G.sum(0))
    for layer in ("early", "late"):
        inside = [f"{layer}.weight", f"{layer}.bias"]
        by_itself = oracle.gradients(rows, plain, ascending, shared=inside)
        expected |= {name: by_itself[name] for name in inside}
    assert_gradients(network, expected, rows)


def separate_heads(network: Network) -> dict[str, Tensor]:
    """What each head's .grad is by a backward pass of its own loss."""
    result = {}
    for task in TASKS:
        head = network.heads[task]  # type: ignore[index]
        names = [f"heads.{task}.{name}" for name, _ in head.named_parameters()]
        result |= dict(zip(names, torch.autograd.grad(network.losses()[task], list(head.parameters())), strict=True))
    return result


@pytest.mark.parametrize("options", [{"gram_on": True}, {"memory": "low"}, {"shared": True}, {"method": "nashmtl"}])
def test_heads_are_the_same_bits_whatever_is_decided(options: dict[str, Any]) -> None:
    network = build("perceptron", torch.float32)
    expected = separate_heads(build("perceptron", torch.float32))
    method = options.pop("method", "pcgrad")
    told = {name: network.trunk if value is True else value for name, value in options.items()}
    aggregator(method).backward(network.losses(), **told)
    for name, g in expected.items():
        assert torch.equal(network.get_parameter(name).grad, g), name  # type: ignore[arg-type]
