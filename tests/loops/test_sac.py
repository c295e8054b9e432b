"""Two optimizers with surgery of their own: the critic's losses, and the actor's, which flow through the critic without a trace."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from loops.sac import after, before
from loops.separate_passes import Gradients, assert_same_gradients, recorded_steps, separate_passes
from torch import Tensor, nn

import gradsurgery as gs

TASKS = ("reach", "push", "slide")
ALPHA, DISCOUNT = 0.1, 0.9
Transition = tuple[Tensor, Tensor, Tensor, Tensor]


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(state).chunk(2, -1)
        policy = torch.distributions.Normal(mean, log_std.clamp(-3, 1).exp())
        raw = policy.rsample()
        squashed = torch.tanh(raw)
        return squashed, (policy.log_prob(raw) - torch.log1p(1e-6 - squashed.square())).sum(-1)


class Critic(nn.Module):
    """Two estimates of the value. [2, B]"""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(2))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.stack([net(torch.cat([state, action], -1))[:, 0] for net in self.nets])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)  # tasks conflict at the first step of both
        self.actor, self.critic = Actor(), Critic()
        self.target = copy.deepcopy(self.critic)

    def train_by(self, loop: ModuleType, steps: int) -> list[Gradients]:
        torch.manual_seed(1)
        with recorded_steps(self) as recorded:
            loop.train(self.actor, self.critic, self.target, replay(), steps, alpha=ALPHA, discount=DISCOUNT)
        return recorded

    def reward(self) -> float:
        """Of the policy, over all tasks."""
        torch.manual_seed(2)
        with torch.no_grad():
            return sum(reward(task, state, self.actor(state)[0]).mean().item() for task, (state, *_) in first().items())


def reward(task: str, state: Tensor, action: Tensor) -> Tensor:
    """Each task wants another action, and one pays more than the others; their one-hot code is the state's last three numbers."""
    wanted = torch.tensor({"reach": [0.6, -0.6], "push": [-0.6, 0.6], "slide": [0.6, 0.6]}[task])
    return 4.0 * (task == "push") - (action - wanted - 0.2 * state[:, :2]).square().sum(-1)


def replay() -> dict[str, Iterator[Transition]]:
    def transitions(index: int) -> Iterator[Transition]:
        g = torch.Generator().manual_seed(index)
        code = torch.eye(3)[index].expand(16, 3)
        for _ in itertools.count():
            state, following = (torch.cat([torch.randn(16, 2, generator=g), code], 1) for _ in range(2))
            action = 2 * torch.rand(16, 2, generator=g) - 1
            yield state, action, reward(TASKS[index], state, action), following

    return {task: transitions(index) for index, task in enumerate(TASKS)}


def first() -> dict[str, Transition]:
    return {task: next(memory) for task, memory in replay().items()}


def mean() -> gs.GradientAggregator:
    """What ``gs.PCGrad`` does on its optimizer's parameters."""
    return gs.GradientAggregator("pcgrad", tasks=TASKS, reduction="mean")


def test_the_first_steps_are_those_of_separate_passes() -> None:
    model = Model()
    expected = copy.deepcopy(model)
    critic_step, actor_step = model.train_by(after, 1)

    torch.manual_seed(1)
    values: dict[str, list[Tensor]] = {}
    for task, (state, action, gain, following) in first().items():
        with torch.no_grad():
            future, log_prob = expected.actor(following)
            value = gain + DISCOUNT * (expected.target(following, future).amin(0) - ALPHA * log_prob)
        values[task] = [(expected.critic(state, action) - value).square().mean()]
    critic = dict(expected.critic.named_parameters(prefix="critic"))
    assert_same_gradients(critic_step, separate_passes(critic, values, mean()))

    for name, p in critic.items():  # the critic as it was after that step
        p.grad = critic_step[name]
    torch.optim.Adam(critic.values(), lr=1e-2).step()
    policies: dict[str, list[Tensor]] = {}
    for task, (state, *_) in first().items():
        action, log_prob = expected.actor(state)
        policies[task] = [(ALPHA * log_prob - expected.critic(state, action).amin(0)).mean()]
    actor = dict(expected.actor.named_parameters(prefix="actor"))
    assert_same_gradients(actor_step, separate_passes(actor, policies, mean()))

    assert all(critic_step[name] is None for name in actor)
    assert all(torch.equal(actor_step[name], critic_step[name]) for name in critic), "the actor's losses leave the critic alone"


@pytest.mark.parametrize("loop", [before, after], ids=["before", "after"])
def test_it_learns(loop: ModuleType) -> None:
    model = Model()
    start = model.reward()
    model.train_by(loop, 120)
    assert model.reward() > start + 1.0
