"""Networks drawn at random: skip connections, weights used several times, tasks anywhere; the comparison is the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import parameters as oracle
from parameters.comparison import ascending, assert_gradients, untouched
from torch import Tensor, nn

import gradsurgery as gs

WIDTH = 3


def overwritten(x: Tensor) -> Tensor:
    """Written into in place."""
    y = x.clone()
    y[:2] = x[2:].tanh()
    y[:, 0] *= 0.5
    return y


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "several outputs": lambda x: torch.cat([part.tanh() for part in reversed(x.chunk(2))]),
    "one of several outputs": lambda x: x.sort(-1).values + x.unbind(0)[1],
    "in place": overwritten,
    "broadcast": lambda x: x.sin() + x.mean(0),
    "norm": lambda x: torch.nn.functional.layer_norm(x, (WIDTH,)),
    "view": lambda x: x.view(-1).flip(0).view(4, WIDTH),
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class Plan:
    """A directed acyclic graph of features.

    Attributes:
        nodes: for each, what it is computed from: earlier nodes (0 is the input), and the number of the weight in between.
        operations: for each node, what is made of their sum.
        tasks: for each, the nodes and weights that its loss reads; a weight may be one of the nodes'.
        decays: for each task, the weights whose squares its loss has in it.
        nested: for each task, the earlier tasks whose losses it has in its own.
        twice: for each task, whether its parts are losses of their own, in place of their sum.
        frozen: the weights that do not learn.
        weights: their number.
    """

    nodes: Sequence[Sequence[tuple[int, int]]]
    operations: Sequence[str]
    tasks: Sequence[Sequence[tuple[int, int]]]
    decays: Sequence[Sequence[int]]
    nested: Sequence[Sequence[int]]
    twice: Sequence[bool]
    frozen: Sequence[int]
    weights: int


@st.composite
def plans(draw: st.DrawFn, once: bool = False) -> Plan:
    """``once``: no task has two losses."""
    weights, count = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    weight = st.integers(0, weights - 1)
    nodes = [draw(st.lists(st.tuples(st.integers(0, k), weight), min_size=1, max_size=3)) for k in range(count)]
    tasks = draw(st.lists(st.lists(st.tuples(st.integers(0, count), weight), min_size=1, max_size=2), min_size=1, max_size=4))
    return Plan(
        nodes,
        operations=draw(st.lists(st.sampled_from(list(OPERATIONS)), min_size=count, max_size=count)),
        tasks=tasks,
        decays=[draw(st.lists(weight, max_size=1)) for _ in tasks],
        nested=[draw(st.lists(st.integers(0, t - 1), max_size=1)) if t else [] for t in range(len(tasks))],
        twice=[not once and draw(st.booleans()) for _ in tasks],
        frozen=draw(st.lists(weight, max_size=2, unique=True)),
        weights=weights,
    )


class Drawn(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        generator = torch.Generator().manual_seed(plan.weights)
        self.weights = nn.ParameterList(
            torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(plan.weights)
        )
        for k in plan.frozen:
            self.weights[k].requires_grad_(False)

    def node(self, k: int, x: Tensor) -> Tensor:
        return OPERATIONS[self.plan.operations[k]](x)

    def losses(self) -> dict[str, list[Tensor]]:
        """Those of the tasks that reach a parameter that learns."""
        generator = torch.Generator().manual_seed(1)
        features = [torch.randn(4, WIDTH, generator=generator, dtype=torch.float64)]
        for node in self.plan.nodes:
            features.append(self.node(len(features) - 1, torch.stack([features[k] @ self.weights[w] for k, w in node]).sum(0)))
        sums: list[Tensor] = []
        result: dict[str, list[Tensor]] = {}
        for t, reads in enumerate(self.plan.tasks):
            target = torch.randn(4, WIDTH, generator=generator, dtype=torch.float64)
            parts = [(torch.tanh(features[k] @ self.weights[w]) - target).square().mean() for k, w in reads]
            parts += [0.1 * self.weights[w].square().sum() for w in self.plan.decays[t]]
            parts += [sums[other].sin() for other in self.plan.nested[t]]
            sums.append(torch.stack(parts).sum())
            own = [part for part in (parts if self.plan.twice[t] else sums[-1:]) if part.requires_grad]
            if own:
                result[str(t)] = own
        return result


@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
@given(plan=plans())
def test_found(options: dict[str, Any], plan: Plan) -> None:
    network, plain = Drawn(plan), Drawn(plan)
    losses = network.losses()
    surgery = gs.GradientAggregator("pcgrad", tasks=len(plan.tasks), order="ascending")
    rows = oracle.separate(plain, plain.losses)
    assert rows.keys() == losses.keys()
    if not losses or (len(losses) > 1 and not oracle.shared_names(rows, plain)):
        with untouched(network), pytest.raises((ValueError, RuntimeError), match="shared" if losses else "losses"):
            surgery.backward(losses, **options)
        return
    surgery.backward(losses, **options)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@given(plan=plans(), data=st.data())
def test_given(plan: Plan, data: st.DataObject) -> None:
    """Whatever is named as shared, reached by many tasks or by one, gets surgery, and the rest plain sums."""
    network, plain = Drawn(plan), Drawn(plan)
    losses = network.losses()
    rows = oracle.separate(plain, plain.losses)
    names = data.draw(st.lists(st.sampled_from([name for name, _ in network.named_parameters()]), min_size=1, unique=True))
    surgery = gs.GradientAggregator("pcgrad", tasks=len(plan.tasks), order="ascending")
    shared = [network.get_parameter(name) for name in names]
    assume(len(losses) > 1)
    if not any(name in row for row in rows.values() for name in names):
        with untouched(network), pytest.raises((ValueError, RuntimeError), match="shared"):
            surgery.backward(losses, shared=shared)
        return
    surgery.backward(losses, shared=shared)
    assert_gradients(network, oracle.gradients(rows, plain, ascending, shared=names), rows)


@given(plan=plans(), data=st.data())
def test_decided_on_some(plan: Plan, data: st.DataObject) -> None:
    """Weights for K of some of the shared parameters, applied to all of them."""
    network, plain = Drawn(plan), Drawn(plan)
    rows = oracle.separate(plain, plain.losses)
    shared = oracle.shared_names(rows, plain)
    assume(shared)
    on = data.draw(st.lists(st.sampled_from(shared), min_size=1, unique=True))
    surgery = gs.GradientAggregator("pcgrad", tasks=len(plan.tasks), order="ascending")
    memory = data.draw(st.sampled_from(["full", "low"]))
    surgery.backward(network.losses(), gram_on=[network.get_parameter(name) for name in on], memory=memory)
    G = oracle.matrix(rows, on, [str(t) for t in range(len(plan.tasks))])
    w = gs.weights(G @ G.T, "pcgrad", order="ascending")[[int(task) for task in rows]]
    assert_gradients(network, oracle.gradients(rows, plain, lambda whole: w @ whole), rows)


class Hooked(Drawn):
    """Some nodes' gradients are changed on their way, by no linear map."""

    hooked: frozenset[int] = frozenset()

    def node(self, k: int, x: Tensor) -> Tensor:
        y = super().node(k, x)
        if k in self.hooked and y.requires_grad:
            y.register_hook(lambda g: 3 * g / (0.1 + g.abs()))
        return y


@given(plan=plans(once=True), hooked=st.frozensets(st.integers(0, 3), min_size=1))
def test_hooked(plan: Plan, hooked: frozenset[int]) -> None:
    """Every hook once a task; separate passes would call it once a loss, where a task has several."""
    network, plain = Hooked(plan), Hooked(plan)
    network.hooked = plain.hooked = hooked
    rows = oracle.separate(plain, plain.losses)
    assume(oracle.shared_names(rows, plain))
    gs.GradientAggregator("pcgrad", tasks=len(plan.tasks), order="ascending").backward(network.losses())
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
