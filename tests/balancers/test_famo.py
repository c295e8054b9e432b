"""FAMO against the paper's update with torch's own Adam, and the order of its calls."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.balancers import Balancer


def series(steps: int, tasks: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    decay = torch.linspace(0.9, 0.99, tasks, dtype=torch.float64)
    return [
        decay**step * 10.0 ** torch.arange(tasks).double() * (0.8 + 0.4 * torch.rand(tasks, generator=g, dtype=torch.float64))
        for step in range(steps)
    ]


def paper(losses: list[Tensor], *, lr: float, weight_decay: float, minima: Tensor) -> list[Tensor]:
    """The weights of each step: softmax by autograd, and torch.optim.Adam with its L2 weight decay."""
    x = torch.zeros(losses[0].numel(), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=lr, weight_decay=weight_decay)
    found = []
    for before, after in pairwise(losses):
        D = (before - minima + 1e-8).requires_grad_()
        z = x.softmax(0)
        c = (z / D).sum().detach()
        (w,) = torch.autograd.grad((z.detach() * D.log()).sum() / c, D)
        found.append(w)
        fall = D.detach().log() - (after - minima + 1e-8).log()
        (x.grad,) = torch.autograd.grad(z, x, grad_outputs=fall)
        adam.step()
    return found


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "weight_decay": 0.5}, {"weight_decay": 0.0, "min_losses": (-1.0, -0.5, -3.0)}])
def test_weights_are_the_papers(options: dict[str, Any]) -> None:
    losses = series(60)
    balancer = gs.FAMO(3, **options)
    minima = torch.tensor(options.get("min_losses", (0.0, 0.0, 0.0)), dtype=torch.float64)
    expected = paper(losses, lr=options.get("lr", 0.025), weight_decay=options.get("weight_decay", 1e-3), minima=minima)
    for (before, after), w in zip(pairwise(losses), expected, strict=True):
        balancer(list(before))
        torch.testing.assert_close(balancer.weights, w, rtol=1e-12, atol=0)
        balancer.update(list(after))
    assert (expected[-1] * losses[-2] / (expected[0] * losses[0])).log().std() > 0.01, "x has moved"


def test_float32_losses_follow_float64_ones() -> None:
    one, other = gs.FAMO(3), gs.FAMO(3)
    for before, after in pairwise(series(40)):
        one(list(before))
        other(list(before.float()))
        one.update(list(after))
        other.update(list(after.float()))
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-6)


def test_the_slowest_task_gains_weight() -> None:
    balancer = gs.FAMO(2)
    for step in range(50):
        balancer([torch.tensor(0.9**step), torch.tensor(0.99**step)])
        balancer.update([torch.tensor(0.9 ** (step + 1)), torch.tensor(0.99 ** (step + 1))])
    assert balancer.logits[1] - balancer.logits[0] > 1


def test_without_eps_the_scale_of_the_losses_does_not_matter() -> None:
    scales = torch.tensor([2.0**-60, 1.0, 2.0**60], dtype=torch.float64)
    one, other = gs.FAMO(3, eps=0.0), gs.FAMO(3, eps=0.0)
    for before, after in zip(series(30), series(31)[1:], strict=True):
        for balancer, factor in ((one, torch.ones(3)), (other, scales)):
            balancer(list(factor * before))
            balancer.update(list(factor * after))
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-9, atol=1e-12)


def test_an_absent_task_keeps_its_logit_and_moments() -> None:
    losses = series(20)
    balancer, alone = gs.FAMO(3), gs.FAMO(2)
    for step, (before, after) in enumerate(pairwise(losses)):
        if step == 7:
            balancer(list(before))
            balancer.update(list(after))
            fixed = [balancer.logits[1].item(), balancer._exp_avg[1].item(), balancer._steps[1].item()]
            continue
        for each, values in ((balancer, [before[0], None, before[2]]), (alone, [before[0], before[2]])):
            each(values)
        balancer.update([after[0], None, after[2]])
        alone.update([after[0], after[2]])
        if step < 7:
            torch.testing.assert_close(balancer.logits[[0, 2]], alone.logits, rtol=1e-12, atol=1e-15)
    assert fixed == [balancer.logits[1].item(), balancer._exp_avg[1].item(), balancer._steps[1].item()]
    assert balancer._steps.tolist() == [19, 1, 19]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_loss_without_logarithm_takes_no_step(broken: float) -> None:
    balancer = gs.FAMO(2, eps=0.0)
    balancer([torch.tensor(1.0), torch.tensor(2.0)])
    balancer.update([torch.tensor(0.9), torch.tensor(1.0)])
    before = {name: value.clone() for name, value in balancer.named_buffers() if name != "_previous"}
    for pair in ((1.0, broken), (broken, 1.0)):
        balancer([torch.tensor(x) for x in (pair[0], 1.0)])
        balancer.update([torch.tensor(x) for x in (pair[1], 1.0)])
        assert all(torch.equal(before[name], getattr(balancer, name)) for name in before if name != "_weights")


def test_update_comes_after_a_call_once() -> None:
    balancer = gs.FAMO(("a", "b"))
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    missing = r"FAMO.update: expected balancer\(losses\) in training mode since the last update, found none"
    with pytest.raises(RuntimeError, match=missing):
        balancer.update(losses)
    balancer.eval()
    balancer(losses)
    with pytest.raises(RuntimeError, match=missing):
        balancer.update(losses)
    balancer.train()
    balancer(losses)
    with pytest.raises(ValueError, match=r"losses: expected the tasks of the last call \(a, b\), found a\."):
        balancer.update({"a": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="losses: expected tasks among a, b, found c"):
        balancer.update({"c": torch.tensor(1.0)})
    balancer.update(losses)  # what was refused changed nothing
    with pytest.raises(RuntimeError, match=missing):
        balancer.update(losses)
    by_itself = gs.FAMO(2, update_on_next_call=True)
    by_itself(list(losses.values()))
    with pytest.raises(RuntimeError, match="with update_on_next_call=True the next call updates"):
        by_itself.update(losses)


def test_a_forgotten_update_is_said_once_where_it_happens() -> None:
    balancer, losses = gs.FAMO(2), [torch.tensor(1.0), torch.tensor(2.0)]
    balancer(losses)
    with pytest.warns(UserWarning, match=r"FAMO: a second call in training without balancer\.update") as said:
        balancer(losses)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer(losses)


def test_the_next_call_stands_for_the_update() -> None:
    losses = series(30)
    told, by_itself = gs.FAMO(3), gs.FAMO(3, update_on_next_call=True)
    for before, after in pairwise(losses):
        told(list(before))
        by_itself(list(before))
        assert torch.equal(told.logits, by_itself.logits)
        told.update(list(after))
    by_itself([None, torch.tensor(1.0), torch.tensor(1.0)])
    by_itself([torch.tensor(1.0), None, None])  # no task in common with the last call
    assert by_itself._steps.tolist() == [28, 29, 29]


def test_a_checkpoint_between_call_and_update() -> None:
    losses = series(3)
    one: Balancer = gs.FAMO(3)
    one(list(losses[0]))
    other = gs.FAMO(3)
    other.load_state_dict(one.state_dict())
    for balancer in (one, other):
        balancer.update(list(losses[1]))  # type: ignore[operator]
    assert torch.equal(one.logits, other.logits)  # type: ignore[arg-type]
    assert other.logits.abs().max() > 0
