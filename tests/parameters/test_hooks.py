"""Hooks see one gradient a task, as in separate backward passes, and what they change is changed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from parameters.comparison import aggregator, ascending, assert_gradients, grads, untouched
from parameters.models import TASKS, Perceptron
from torch import Tensor

Hook = Callable[[Tensor], Tensor | None]


def squashed(g: Tensor) -> Tensor:
    """No linear map: on the sum of the tasks' gradients it gives something else than on each."""
    return 3 * g / (0.05 + g.abs())


def stretched(g: Tensor) -> Tensor:
    """A linear map, other than a factor."""
    return g * torch.linspace(0.5, 3.0, g.shape[-1], dtype=g.dtype) if g.dim() else 2 * g


class Hooked(Perceptron):
    """A hook at some place of every forward pass.

    Args:
        place: where.
        hook: what it makes of a gradient.
    """

    def __init__(self, place: str, hook: Hook) -> None:
        super().__init__()
        self.place, self.hook = place, hook
        if place == "trunk leaf":
            self.trunk[0].weight.register_hook(hook)
        if place == "head leaf":
            self.heads["b"].weight.register_hook(hook)
        if place == "module":
            self.trunk[2].register_full_backward_hook(lambda module, into, out: tuple(None if g is None else hook(g) for g in into))
        if place == "module before":
            self.trunk[2].register_full_backward_pre_hook(lambda module, out: tuple(None if g is None else hook(g) for g in out))

    def forward(self) -> dict[str, Tensor]:
        y = self.trunk[:2](self.draw(7, 4))
        if self.place == "intermediate":
            y.register_hook(self.hook)
        z = self.trunk(self.draw(7, 4)) if self.place.startswith("module") else self.trunk[2:](y)
        if self.place == "features":
            z.register_hook(self.hook)
        if self.place == "node":
            z.grad_fn.register_hook(lambda into, out: tuple(None if g is None else self.hook(g) for g in into))
        if self.place == "node before":
            z.grad_fn.register_prehook(lambda out: tuple(None if g is None else self.hook(g) for g in out))
        losses = self.each({task: head(z) for task, head in self.heads.items()})
        if self.place == "loss":
            for loss in losses.values():
                loss.register_hook(self.hook)
        return losses


PLACES = ["features", "intermediate", "trunk leaf", "head leaf", "module", "module before", "node", "node before", "loss"]


def hooked(place: str, hook: Hook = squashed) -> Hooked:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Hooked(place, hook).double()


HOOKS: dict[str, tuple[dict[str, Any], Hook]] = {
    "full-squashed": ({}, squashed),
    "full-stretched": ({}, stretched),
    "low-stretched": ({"memory": "low"}, stretched),
    "batched-squashed": ({"passes": "batched"}, squashed),
}


@pytest.mark.parametrize(
    ("place", "case"),
    [(place, case) for place in PLACES for case in HOOKS if not (case.startswith("batched") and place.startswith("module"))],
)
def test_hooks_that_change_gradients_are_applied_once_a_task(place: str, case: str) -> None:
    """What is bought by one weighted pass is right for linear hooks alone, as that pass brings a sum of the tasks' gradients."""
    options, hook = HOOKS[case]
    network, plain, unhooked = hooked(place, hook), hooked(place, hook), hooked("nowhere")
    aggregator().backward(network.losses(), **options)
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, ascending)
    assert_gradients(network, expected, rows)
    aggregator().backward(unhooked.losses())
    changed = [name for name, g in grads(unhooked).items() if not torch.allclose(g, expected[name], rtol=1e-3)]
    assert changed, "the hook matters"


@pytest.mark.parametrize("place", ["module", "module before"])
def test_modules_with_hooks_are_not_batched(place: str) -> None:
    """What such a module keeps between the two ends of its backward pass is one task's."""
    network = hooked(place)
    with untouched(network), pytest.raises(ValueError, match=r"passes: 'batched'.*'sequential'"):
        aggregator().backward(network.losses(), passes="batched")


@pytest.mark.parametrize("place", PLACES)
def test_how_often_hooks_are_called(place: str) -> None:
    """As by separate passes, and again where a pass ends or is taken up: autograd runs the hooks there each time."""
    calls: list[int] = []

    def counting(g: Tensor) -> Tensor:
        calls.append(1)
        return g * 1

    network, plain = hooked(place, counting), hooked(place, counting)
    losses = plain.losses()
    for loss in losses.values():
        loss.backward(retain_graph=True)
    expected = len(calls)
    assert expected == (1 if place == "head leaf" else len(TASKS))
    calls.clear()
    aggregator().backward(network.losses())
    inside = place in ("features", "intermediate", "node", "node before")
    assert expected <= len(calls) <= (3 * expected if inside else expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_a_gradient_that_a_hook_kept_stays_what_it_was(place: str, options: dict[str, Any], accumulate: bool) -> None:
    log: list[tuple[Tensor, Tensor]] = []

    def keeping(g: Tensor) -> None:
        log.append((g, g.clone()))

    def passing(g: Tensor) -> Tensor:
        log.append((g, g.clone()))
        return g

    network = hooked(place, passing if place.startswith(("module", "node")) else keeping)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    aggregator().backward(network.losses(), accumulate=accumulate, **options)
    for p in network.parameters():
        assert p.grad is not None
        p.grad.add_(1.0).mul_(3.0)
    assert log
    for kept, copy in log:
        assert torch.equal(kept, copy)
    if place == "trunk leaf" and not options:
        plain = hooked("nowhere")
        expected = [row["trunk.0.weight"] for row in oracle.separate(plain, plain.losses).values()]
        for kept, _ in log:
            assert sum(torch.equal(kept, g) for g in expected) == 1
        assert len(log) == len(TASKS)


@pytest.mark.parametrize("present", [TASKS, ("b",)], ids="-".join)
def test_a_scaled_gradient_that_a_hook_kept_stays_what_it_was(present: tuple[str, ...]) -> None:
    log: list[tuple[Tensor, Tensor]] = []
    network = hooked("trunk leaf", lambda g: log.append((g, g.clone())))
    network.heads["b"].bias.register_hook(lambda g: log.append((g, g.clone())))  # type: ignore[index]
    surgery, scaler = aggregator(), torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(2):
        losses = {task: loss for task, loss in network.losses(seed).items() if task in present}
        surgery.collect(losses, scaler=scaler)
    surgery.backward(scaler=scaler)
    assert len(log) == 2 * (len(present) + 1)
    for kept, copy in log:
        assert torch.equal(kept, copy)


def test_hooks_of_one_task() -> None:
    for place in PLACES:
        network, plain = hooked(place), hooked(place)
        aggregator().backward({"b": network.losses()["b"]})
        plain.losses()["b"].backward()
        for (name, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or torch.equal(p.grad, q.grad), (place, name)  # type: ignore[arg-type]


# --- after accumulation -----------------------------------------------------------------------------------------------------------


def listening(network: Perceptron) -> dict[str, list[Tensor]]:
    """What every parameter's .grad was when its hook was called."""
    seen: dict[str, list[Tensor]] = {name: [] for name, _ in network.named_parameters()}
    for name, p in network.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen[name].append(p.grad.clone()))
    return seen


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
@pytest.mark.parametrize("present", [TASKS, ("a", "c"), ("b",)], ids="-".join)
def test_hooks_after_accumulation_are_called_once_at_the_end(options: dict[str, Any], present: tuple[str, ...]) -> None:
    network = hooked("nowhere")
    for p in network.parameters():
        p.grad = torch.full_like(p, 0.5)
    seen = listening(network)
    aggregator().backward({task: loss for task, loss in network.losses().items() if task in present}, **options)
    for name, p in network.named_parameters():
        reached = name.startswith("trunk") or name.split(".")[1] in present
        assert len(seen[name]) == reached, name
        assert p.grad is not None
        assert all(torch.equal(g, p.grad) for g in seen[name])
        assert torch.equal(p.grad, torch.full_like(p, 0.5)) == (not reached)


def test_hooks_after_accumulation_are_called_when_a_window_ends() -> None:
    network = hooked("nowhere")
    seen = listening(network)
    surgery = aggregator()
    surgery.collect(network.losses(0))
    assert not any(seen.values())
    surgery.backward(network.losses(1))
    for name, p in network.named_parameters():
        assert [torch.equal(g, p.grad) for g in seen[name]] == [True], name  # type: ignore[arg-type]


def test_optimizers_that_step_in_hooks() -> None:
    """They take the gradient away; everything was computed before the first of them moved a parameter."""
    network, plain = hooked("nowhere"), hooked("nowhere")

    def step(p: Tensor) -> None:
        with torch.no_grad():
            p.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]
        p.grad = None

    for p in network.parameters():
        p.register_post_accumulate_grad_hook(step)
    aggregator().backward(network.losses())
    expected = oracle.gradients(oracle.separate(plain, plain.losses), plain, ascending)
    for name, p in network.named_parameters():
        assert p.grad is None
        torch.testing.assert_close(p.detach(), plain.get_parameter(name).detach() - 0.1 * expected[name], rtol=1e-10, atol=1e-12)


def test_no_hook_after_accumulation_is_called_in_a_step_that_fails() -> None:
    network = hooked("nowhere")
    seen = listening(network)
    losses = network.losses()

    def fail(g: Tensor) -> Tensor:
        raise RuntimeError("a hook that raises")

    losses["c"].register_hook(fail)
    with untouched(network), pytest.raises(RuntimeError, match="a hook that raises"):
        aggregator().backward(losses)
    assert not any(seen.values())
