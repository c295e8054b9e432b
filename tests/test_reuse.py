"""``every=k``: weights of one step serve the k - 1 after it, in every form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs

TASKS = ("a", "b", "c")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})
        self.double()

    def losses(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {task: (self.heads[task](z[task]) * (-2.0) ** TASKS.index(task) - 1).square().mean() for task in z}

    def forward(self, step: int) -> Tensor:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return self.trunk(x)


Way = Callable[[Network, gs.GradientAggregator, int, tuple[str, ...]], None]


def by_split(net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> None:
    views = surgery.split(net(step), tasks)
    torch.stack(list(net.losses(dict(zip(tasks, views, strict=True))).values())).sum().backward()


def by_detach(net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> None:
    z = surgery.detach(net(step))
    for task in tasks:
        with surgery.task(task):
            net.losses({task: z})[task].backward()
    surgery.backward()


def by_losses(net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> None:
    z = net(step)
    surgery.backward(net.losses(dict.fromkeys(tasks, z)))


def by_separate_graphs(net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> None:
    surgery.backward(net.losses({task: net(step) for task in tasks}))


def by_collecting(net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> None:
    for task in tasks:
        surgery.collect(net.losses({task: net(step)}))
    surgery.backward()


WAYS = [by_split, by_detach, by_losses, by_separate_graphs, by_collecting]


def updated(way: Way, net: Network, surgery: gs.GradientAggregator, step: int, tasks: tuple[str, ...] = TASKS) -> Tensor:
    """One step of gradient descent; the weights that served."""
    net.zero_grad()
    way(net, surgery, step, tasks)
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=0.05)
    assert surgery.weights is not None
    return surgery.weights.clone()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["cagrad", "mgda", "pcgrad", "random", "modo"])
def test_weights_serve_k_steps_and_are_those_of_a_full_step(way: Way, method: str) -> None:
    net, surgery = Network(), gs.GradientAggregator(method, tasks=TASKS, every=3)
    weights = []
    for step in range(7):
        twin, full = copy.deepcopy(net), gs.GradientAggregator(method, tasks=TASKS)
        full.load_state_dict(
            {k: v for k, v in surgery.state_dict().items() if k != "_extra_state"} | {"_extra_state": _plain(surgery)}
        )
        weights.append(updated(way, net, surgery, step))
        if step % 3 == 0:
            torch.testing.assert_close(weights[-1], updated(way, twin, full, step), rtol=1e-9, atol=1e-9)
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[3], weights[5])
    assert not torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[5], weights[6])


def _plain(surgery: gs.GradientAggregator) -> object:
    return {name: value for name, value in surgery.get_extra_state().items() if name != "reuse"}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_between_combines_its_own_gradients(way: Way) -> None:
    net, surgery = Network(), gs.GradientAggregator("cagrad", tasks=TASKS, every=4)
    w = updated(way, net, surgery, 0)
    twin = copy.deepcopy(net)
    net.zero_grad()
    way(net, surgery, 1, TASKS)
    constant = gs.GradientAggregator("constant", weights=tuple(w.tolist()), tasks=TASKS)
    twin.zero_grad()
    way(twin, constant, 1, TASKS)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_resumed_to_the_bit(way: Way, stop: int) -> None:
    net, surgery = Network(), gs.GradientAggregator("pcgrad", tasks=TASKS, every=3, seed=5)
    for step in range(stop):
        updated(way, net, surgery, step)
    state = copy.deepcopy(surgery.state_dict())
    twin, resumed = copy.deepcopy(net), gs.GradientAggregator("pcgrad", tasks=TASKS, every=3, seed=5)
    resumed.load_state_dict(state)
    for step in range(stop, 8):
        assert torch.equal(updated(way, net, surgery, step), updated(way, twin, resumed, step))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_renewed_when_other_tasks_are_present(way: Way) -> None:
    net, surgery = Network(), gs.GradientAggregator("cagrad", tasks=TASKS, every=10)
    all_three = updated(way, net, surgery, 0)
    two = updated(way, net, surgery, 1, ("a", "c"))
    assert two[1] == 0
    assert not torch.equal(two[[0, 2]], all_three[[0, 2]])
    assert torch.equal(updated(way, net, surgery, 2, ("a", "c")), two)
    assert not torch.equal(updated(way, net, surgery, 3), all_three)


@pytest.mark.parametrize("way", [by_split, by_losses])
def test_weights_that_are_not_finite_are_not_kept(way: Way) -> None:
    """A gradient scaler skips their step; those after it use the last finite ones, or 1 where there are none."""
    net, surgery = Network(), gs.GradientAggregator("cagrad", tasks=TASKS, every=2)
    broken = Network()
    with torch.no_grad():
        broken.heads["b"].weight.fill_(float("nan"))
    way(broken, surgery, 0, TASKS)
    assert surgery.weights is not None
    assert surgery.weights.isnan().all()
    assert torch.equal(updated(way, net, surgery, 1), torch.ones(3, dtype=torch.float64))
    good = updated(way, net, surgery, 2)
    assert good.isfinite().all()
    updated(way, net, surgery, 3)
    way(broken, surgery, 4, TASKS)
    assert torch.equal(updated(way, net, surgery, 5), good)


@pytest.mark.parametrize("method", [name for name, spec in gs.methods().items() if spec.family in ("buffered", "coordinatewise")])
def test_methods_whose_weights_are_not_ks_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match="every: expected a method whose weights K alone decides"):
        gs.GradientAggregator(method, every=2)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_steps(every: object) -> None:
    with pytest.raises((TypeError, ValueError), match="every: expected an integer"):
        gs.GradientAggregator("pcgrad", every=every)  # type: ignore[arg-type]


def test_a_listener_that_needs_k_is_refused() -> None:
    with pytest.raises(ValueError, match="register_step_hook: expected K in every step, found every=2"):
        gs.GradNorm(TASKS, aggregator=gs.GradientAggregator("pcgrad", tasks=TASKS, every=2))
