"""Every method, every order, absent tasks: the decision is the one on the flat gradients."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from methods.gradients import FEWEST
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES, SEED
from oracles.gradvac import gradvac
from oracles.pcgrad import pcgrad
from parameters.comparison import aggregator, ascending, assert_gradients, grads
from parameters.models import TASKS, Network, build
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops.reference import random_order

METHODS = gs.methods()


def options(method: str) -> dict[str, Any]:
    """What makes a method's answer the oracle's."""
    known = METHODS[method].options
    return {name: value for name, value in (("order", "ascending"), ("seed", SEED)) if name in known}


# Where a task does not reach a parameter its row is zero for K, but no value among others for what treats coordinates one by one.
EVERYWHERE = sorted(name for name, spec in METHODS.items() if spec.family != "coordinatewise")


@pytest.mark.parametrize(
    ("kind", "method"), [*(("perceptron", name) for name in sorted(METHODS)), *(("chained-features", name) for name in EVERYWHERE)]
)
def test_every_method_decides_as_on_the_flat_gradients(method: str, kind: str) -> None:
    network, plain = build(kind), build(kind)
    assert FEWEST.get(method, 1) <= len(TASKS)
    positive = {"losses"} & METHODS[method].needs
    losses = network.losses()
    told = {task: loss.square() + 0.5 if positive else loss for task, loss in losses.items()}
    aggregator(method, **options(method)).backward(told, shared=shared_of(network))

    def forward() -> dict[str, Tensor]:
        return {task: loss.square() + 0.5 if positive else loss for task, loss in plain.losses().items()}

    rows = oracle.separate(plain, forward)
    heard = {"losses": [float(loss.detach()) for loss in told.values()]} if positive else {}
    by_flat = oracle.gradients(rows, plain, lambda G: gs.aggregate(G, method, **heard, **options(method)))
    assert_gradients(network, by_flat, rows)
    if method in ORACLES:
        by_algorithm = oracle.gradients(rows, plain, ORACLES[method])
        for name, g in by_flat.items():
            torch.testing.assert_close(g, by_algorithm[name], rtol=1e-6, atol=1e-6 * float(by_algorithm[name].abs().max() + 1e-9))


def shared_of(network: Network) -> list[Tensor]:
    """What two or more tasks reach, in the network's order: by it coordinates are numbered, for methods that draw by number."""
    return [p for name, p in network.named_parameters() if not name.startswith("heads")]


@pytest.mark.parametrize("method", ["median", "sign_agreement"])
def test_coordinates_count_the_tasks_that_reach_them(method: str) -> None:
    network, plain = build("chained-features"), build("chained-features")
    aggregator(method).backward(network.losses())
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, ORACLES[method])
    for name, tasks in (("early.weight", TASKS), ("early.bias", TASKS), ("late.weight", ("b", "c")), ("late.bias", ("b", "c"))):
        expected[name] = ORACLES[method](oracle.matrix(rows, [name], tasks)).reshape(expected[name].shape)
    assert_gradients(network, expected, rows)


@pytest.mark.parametrize(
    "order",
    [[[0, 1, 2]] * 3, [[2, 1, 0]] * 3, [[1, 2, 0], [0, 2, 1], [1, 0, 2]]],
    ids=["ascending", "descending", "mixed"],
)
@pytest.mark.parametrize("kind", ["perceptron", "overlapping-heads", "tied"])
def test_an_order_that_is_given(kind: str, order: list[list[int]]) -> None:
    network, plain = build(kind), build(kind)
    aggregator(order=torch.tensor(order)).backward(network.losses())
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, lambda G: pcgrad(G, order)), rows)


def test_orders_matter_here() -> None:
    """What the test above compares is not the same for every order."""
    plain = build("tied")
    rows = oracle.separate(plain, plain.losses)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    assert not torch.allclose(pcgrad(G, [[0, 1, 2]] * 3), pcgrad(G, [[2, 1, 0]] * 3), rtol=1e-6)


@pytest.mark.parametrize("kind", ["perceptron", "tied"])
def test_random_orders_come_from_seed_and_step(kind: str) -> None:
    """The same key as on explicit gradients, and the same order as the paper's algorithm is given."""
    network, plain = build(kind), build(kind)
    surgery = aggregator(order="random", seed=SEED)
    for step in range(4):
        network.zero_grad()
        surgery.backward(network.losses(step))
        rows = oracle.separate(plain, lambda step=step: plain.losses(step))
        order = random_order(torch.tensor([SEED, step]), len(TASKS))
        assert_gradients(network, oracle.gradients(rows, plain, lambda G, order=order: pcgrad(G, order)), rows)
        assert surgery.state_dict()["key"].tolist() == [SEED, step + 1]


@pytest.mark.parametrize("absent", TASKS)
@pytest.mark.parametrize("way", ["None", "missing", "sequence", "empty list"])
@pytest.mark.parametrize("method", ["pcgrad", "mean", "mgda"])
def test_absent_tasks(absent: str, way: str, method: str) -> None:
    network, plain = build("perceptron"), build("perceptron")
    losses: Any = {task: None if task == absent else loss for task, loss in network.losses().items()}
    if way == "missing":
        del losses[absent]
    elif way == "empty list":
        losses[absent] = []
    elif way == "sequence":
        losses = list(losses.values())
    surgery = aggregator(method)
    surgery.backward(losses)
    rows = oracle.separate(plain, lambda: {t: loss for t, loss in plain.losses().items() if t != absent})
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method]), rows)
    assert surgery.statistics().present == tuple(task != absent for task in TASKS)
    if surgery.weights is not None:
        assert float(surgery.weights[TASKS.index(absent)]) == 0


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"gram_on": "trunk"}], ids=["full", "low", "gram_on"])
@pytest.mark.parametrize("method", ["mean", "mgda", "upgrad"])
def test_a_task_that_only_reaches_its_head(method: str, options: dict[str, Any]) -> None:
    """Its gradient of what is shared is no gradient of zeros: it does not count where the others meet."""
    network, plain = build("perceptron"), build("perceptron")

    def losses(net: Network) -> dict[str, Tensor]:
        return {**net.losses(), "b": net.heads["b"].weight.square().sum()}  # type: ignore[index]

    told = {name: network.trunk if value == "trunk" else value for name, value in options.items()}
    surgery = aggregator(method)
    surgery.backward(losses(network), **told)
    rows = oracle.separate(plain, lambda: losses(plain))
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES[method], tasks=("a", "c")), rows)
    assert surgery.statistics().present == (True, False, True)


def test_an_absent_task_keeps_its_place_in_the_orders_and_in_memory() -> None:
    network, plain = build("tied"), build("tied")
    surgery = aggregator("gradvac", order="random", seed=SEED, beta=0.3)
    averages = torch.zeros(3, 3, dtype=torch.float64)
    for step, present in enumerate([("a", "b", "c"), ("a", "c"), ("b", "c"), ("a", "b", "c")]):
        network.zero_grad()
        surgery.backward({task: loss for task, loss in network.losses(step).items() if task in present})
        rows = oracle.separate(
            plain, lambda step=step, present=present: {t: v for t, v in plain.losses(step).items() if t in present}
        )
        order = random_order(torch.tensor([SEED, step]), len(TASKS))

        def surgery_of(G: Tensor, order: Tensor = order) -> Tensor:
            return gradvac(G, order, averages, beta=0.3)

        assert_gradients(network, oracle.gradients(rows, plain, surgery_of, tasks=TASKS), rows)


def test_tasks_that_were_not_declared_are_named_as_they_appear() -> None:
    network, plain = build("tied"), build("tied")
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    losses = network.losses()
    surgery.backward({task: losses[task] for task in ("c", "a", "b")})
    assert surgery.tasks == ("c", "a", "b")
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending, tasks=("c", "a", "b")), rows)
    network.zero_grad()
    surgery.backward(network.losses(1))  # in another order, but they have their places now
    rows = oracle.separate(plain, lambda: plain.losses(1))
    assert_gradients(network, oracle.gradients(rows, plain, ascending, tasks=("c", "a", "b")), rows)


def test_declared_order_and_not_the_order_of_the_dict() -> None:
    network, plain = build("tied"), build("tied")
    losses = network.losses()
    aggregator().backward({task: losses[task] for task in reversed(TASKS)})
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending, tasks=TASKS), rows)


def test_tasks_of_a_number() -> None:
    network, plain = build("tied"), build("tied")
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    surgery.backward(list(network.losses().values()))
    assert surgery.tasks == ("0", "1", "2")
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("way", [dict, MappingProxyType, OrderedDict, UserDict])
def test_any_mapping(way: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    network, plain = build("tied"), build("tied")
    losses = network.losses()
    aggregator().backward(way({task: losses[task] for task in ("c", "a", "b")}))
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending, tasks=TASKS), rows)


@pytest.mark.parametrize("method", ["dbmtl", "moco"])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_losses_are_observed(method: str, scale: float | None) -> None:
    """As they were passed: without the scaler's factor, and without a call of observe(). They are of one step."""
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator(method, tasks=("a", "c"))

    def losses(net: Network) -> dict[str, Tensor]:
        return {task: loss.square() + 0.5 for task, loss in net.losses().items() if task != "b"}

    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    surgery.backward(losses(network), shared=network.trunk, scaler=scaler)
    rows = oracle.separate(plain, lambda: losses(plain))
    told = [float(loss.detach()) for loss in losses(plain).values()]
    expected = oracle.gradients(rows, plain, lambda G: gs.aggregate(G, method, losses=told))
    assert_gradients(network, expected, rows, factor=scale or 1.0)
    with pytest.raises(ValueError, match=r"losses: method .* needs"):
        surgery.aggregate([list(network.trunk.parameters())] * 2)  # type: ignore[union-attr]


def test_the_methods_weights_are_what_the_shared_parameters_got() -> None:
    """.grad is sum_t w_t g_t with the weights that statistics() tells."""
    network, plain = build("pyramid"), build("pyramid")
    surgery = aggregator("cagrad")
    surgery.backward(network.losses())
    rows = oracle.separate(plain, plain.losses)
    assert surgery.weights is not None
    w = surgery.weights.clone()
    assert_gradients(network, oracle.gradients(rows, plain, lambda G: w @ G), rows)
    assert grads(network).keys() == {name for row in rows.values() for name in row}
