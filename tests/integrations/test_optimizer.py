"""An optimizer with ``pc_backward``: the gradients of a step by hand, and everything else as the wrapped optimizer has it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from integrations.problems import (
    TASKS,
    Network,
    assert_gradients,
    assert_same_parameters,
    batch,
    by_hand,
    conflict,
    gradients,
    losses,
)
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradsurgery as gs
from gradsurgery import PCGrad, SurgeryOptimizer

Kind = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=0.05)


def step(net: Network, optimizer: SurgeryOptimizer, number: int) -> None:
    x, y = batch(number)
    optimizer.pc_backward(losses(net(x), y))
    optimizer.step()


# --- gradients --------------------------------------------------------------------------------------------------------------


def test_a_loop_of_the_popular_repository() -> None:
    """Its README has no zero_grad(): pc_backward replaces what is there."""
    net, plain = Network(), Network()
    optimizer, by_itself = PCGrad(adam(net.parameters()), order="ascending"), adam(plain.parameters())
    conflicts = 0
    for number in range(6):
        x, y = batch(number)
        optimizer.pc_backward(list(losses(net(x), y).values()))
        optimizer.step()

        each = losses(plain(x), y)
        conflicts += conflict([each], plain.trunk)
        for p, grad in zip(plain.parameters(), by_hand(plain, plain.trunk, [each], "mean").values(), strict=True):
            p.grad = grad
        by_itself.step()
        assert_same_parameters(net, plain, rtol=1e-10)
    assert conflicts > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction: Any) -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), reduction, order="ascending")
    x, y = batch(0)
    each = losses(net(x), y)
    expected = by_hand(net, net.trunk, [each], reduction)
    optimizer.pc_backward(each)
    assert_gradients(gradients(net), expected)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        PCGrad(adam(net.parameters()), "average")  # type: ignore[arg-type]


def test_any_method_with_its_options() -> None:
    net, other = Network(), Network()
    optimizer = SurgeryOptimizer(adam(net.parameters()), "cagrad", tasks=TASKS, c=0.4)
    surgery = gs.GradientAggregator("cagrad", tasks=TASKS, c=0.4)
    x, y = batch(0)
    optimizer.pc_backward(losses(net(x), y))
    surgery.backward(losses(other(x), y))
    assert_gradients(gradients(net), gradients(other), rtol=0)
    assert optimizer.surgery.tasks == TASKS


def test_a_head_without_objective_in_this_step_is_not_stepped_on() -> None:
    net = Network()
    optimizer = PCGrad(torch.optim.SGD(net.parameters(), lr=0.1), tasks=TASKS)
    step(net, optimizer, 0)
    before = copy.deepcopy(net.heads["depth"])
    x, y = batch(1)
    seg = losses(net(x), y)["seg"]
    optimizer.pc_backward([seg, None])
    assert all(p.grad is None for p in net.heads["depth"].parameters())
    assert net.heads["seg"].weight.grad is not None
    optimizer.step()
    assert_same_parameters(net.heads["depth"], before)


def test_accumulating() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), order="ascending")
    steps = [losses(net(x), y) for x, y in map(batch, range(2))]
    first, second = (by_hand(net, net.trunk, [each], "mean") for each in steps)
    optimizer.zero_grad()
    for each in steps:
        optimizer.pc_backward(each, accumulate=True)
    assert_gradients(gradients(net), {name: first[name] + second[name] for name in first})  # type: ignore[operator]
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_exact_surgery_on_collected_gradients() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), order="ascending")
    steps = [losses(net(x), y) for x, y in map(batch, range(3))]
    expected = by_hand(net, net.trunk, steps, "mean")
    for each in steps:
        optimizer.surgery.collect(each, inputs=list(net.parameters()))
    optimizer.pc_backward()
    assert_gradients(gradients(net), expected)


def test_an_error_leaves_gradients_as_they_were() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), tasks=TASKS)
    x, y = batch(0)
    optimizer.pc_backward(losses(net(x), y))
    before = gradients(net)
    assert before["trunk.0.weight"] is not None
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        optimizer.pc_backward({"seg": losses(net(x), y)["seg"], "depth": torch.zeros(())})
    assert_gradients(gradients(net), before, rtol=0)


def test_retained_graphs_serve_twice() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), order="ascending")
    x, y = batch(0)
    each = losses(net(x), y)
    optimizer.pc_backward(each, retain_graph=True)
    first = gradients(net)
    optimizer.pc_backward(each)
    assert_gradients(gradients(net), first, rtol=0)


def test_an_actor_and_its_critic() -> None:
    """The actor's losses flow through the critic; each optimizer writes the gradients of its own parameters."""
    actor, critic = nn.Linear(4, 2), nn.Linear(6, 2)
    of_actor, of_critic = PCGrad(adam(actor.parameters())), PCGrad(adam(critic.parameters()))
    state, target = torch.randn(7, 4), torch.randn(7, 2)

    def critic_losses() -> list[Tensor]:
        values = critic(torch.cat([state, actor(state).detach()], 1))
        return [(values[:, t] - target[:, t]).square().mean() for t in range(2)]

    def actor_losses() -> list[Tensor]:
        return [-value.mean() for value in critic(torch.cat([state, actor(state)], 1)).unbind(1)]

    of_critic.pc_backward(critic_losses())
    kept = gradients(critic)
    assert gradients(actor) == {"weight": None, "bias": None}
    of_actor.pc_backward(actor_losses())
    assert_gradients(gradients(critic), kept, rtol=0)
    assert actor.weight.grad is not None
    of_critic.step()
    of_actor.step()


def test_frozen_parameters_and_a_group_added_later() -> None:
    net = Network()
    net.heads["seg"].bias.requires_grad_(False)
    optimizer = PCGrad(adam([*net.trunk.parameters(), *net.heads["seg"].parameters()]))
    step(net, optimizer, 0)
    assert net.heads["seg"].bias.grad is None
    assert net.heads["depth"].weight.grad is None, "another's parameters"
    optimizer.add_param_group({"params": net.heads["depth"].parameters(), "lr": 0.5})
    step(net, optimizer, 1)
    assert net.heads["depth"].weight.grad is not None
    assert [group["lr"] for group in optimizer.optimizer.param_groups] == [0.05, 0.5]


def test_sparse_gradients() -> None:
    """They stay sparse, for the optimizers that want them so."""
    words = torch.tensor([[1, 2, 3], [3, 1, 5]])
    tables = [nn.Embedding(9, 4, sparse=sparse, dtype=torch.float64) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        optimizer = PCGrad(torch.optim.SGD(table.parameters(), lr=0.1), order="ascending")
        optimizer.pc_backward([table(words[0]).square().sum(), (table(words[1]) - 1).square().sum()])
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == table.sparse
        optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


# --- an optimizer like any other --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 5),
    ],
    ids=["cosine", "lambda", "one cycle"],
)
@pytest.mark.filterwarnings("error")
def test_schedulers(schedule: Any) -> None:
    net = Network()
    optimizer, plain = PCGrad(adam(net.parameters())), adam(Network().parameters())
    schedules = schedule(optimizer), schedule(plain)
    for number in range(4):
        step(net, optimizer, number)
        plain.step()
        for each in schedules:
            each.step()
        assert optimizer.param_groups[0]["lr"] == optimizer.optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    schedules[0].load_state_dict(schedules[1].state_dict())


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused: bool) -> None:
    """Scaling by a power of two changes nothing; where a gradient overflows, the step is left out and the scale halved."""
    net, plain = Network(torch.float32), Network(torch.float32)
    optimizer = PCGrad(torch.optim.Adam(net.parameters(), lr=0.05, fused=fused), order="ascending")
    unscaled = PCGrad(torch.optim.Adam(plain.parameters(), lr=0.05, fused=fused), order="ascending")
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**12)
    for number in range(4):
        x, y = batch(number, torch.float32)
        optimizer.zero_grad()
        optimizer.pc_backward(losses(net(x), y), scaler=scaler)
        if number % 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        unscaled.pc_backward(losses(plain(x), y))
        unscaled.step()
        assert_same_parameters(net, plain, rtol=1e-6)
    before = copy.deepcopy(net)
    x, y = batch(9, torch.float32)
    optimizer.pc_backward(losses(net(x), y * 1e38), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert_same_parameters(net, before)
    assert scaler.get_scale() == 2.0**11
    assert not hasattr(optimizer.optimizer, "found_inf"), "left with a fused optimizer for the time of a step"


def test_hooks_are_the_wrapped_optimizers() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()))
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("saving"))
    everywhere = register_optimizer_step_pre_hook(lambda *_: seen.append("everywhere"))
    try:
        step(net, optimizer, 0)
        optimizer.state_dict()
        optimizer.optimizer.step()
    finally:
        everywhere.remove()
    assert seen == ["everywhere", "before", "after", "saving", "everywhere", "before", "after"]


def test_attributes_are_the_wrapped_optimizers() -> None:
    net = Network()
    inner = adam(net.parameters())
    optimizer = SurgeryOptimizer(inner, "upgrad")
    step(net, optimizer, 0)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    optimizer.param_groups = inner.param_groups[:1]
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.step(lambda: 4.0) == 4.0
    assert "Adam" in repr(optimizer)
    assert "UPGrad" in repr(optimizer)
    with pytest.raises(AttributeError, match="temperature"):
        _ = optimizer.temperature


# --- state ------------------------------------------------------------------------------------------------------------------


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def three_tasks(net: Network, number: int) -> list[Tensor]:
    """With three tasks PCGrad's random order matters, and is part of the state."""
    x, y = batch(number)
    return [*losses(net(x), y).values(), 2 * (net.trunk(x)[:, :3] - 3 * y).abs().mean()]


def train(net: Network, optimizer: SurgeryOptimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.pc_backward(three_tasks(net, number))
        optimizer.step()


def saved_and_loaded(net: Network, optimizer: PCGrad) -> tuple[Network, PCGrad]:
    fresh = Network()
    fresh.load_state_dict(net.state_dict())
    other = PCGrad(adam(fresh.parameters()), seed=77)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return fresh, other


@pytest.mark.parametrize(
    "again",
    [saved_and_loaded, lambda *both: copy.deepcopy(both), lambda *both: pickle.loads(pickle.dumps(both))],
    ids=["state_dict", "deepcopy", "pickle"],
)
def test_going_on_with_the_same_numbers(again: Any) -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), seed=5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)  # wraps optimizer.step
    train(net, optimizer, range(4))
    other_net, other = again(net, optimizer)
    train(net, optimizer, range(4, 12))
    train(other_net, other, range(4, 12))
    assert_same_parameters(net, other_net)


def test_checkpoints_of_the_plain_optimizer_load_and_the_other_way_round() -> None:
    net, plain_net = Network(), Network()
    optimizer, plain = PCGrad(adam(net.parameters()), seed=5), adam(plain_net.parameters())
    losses(plain_net(batch(0)[0]), batch(0)[1])["seg"].backward()
    plain.step()
    train(net, optimizer, range(2))
    kept = through_a_file(optimizer.surgery.state_dict())
    optimizer.load_state_dict(through_a_file(plain.state_dict()))
    state = optimizer.state_dict()
    assert {"state", "param_groups", "surgery"} == set(state)
    assert torch.equal(state["state"][0]["exp_avg"], plain.state_dict()["state"][0]["exp_avg"])
    assert state["surgery"]["_extra_state"] == kept["_extra_state"]
    train(net, optimizer, range(1))
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(plain.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    net = Network()
    optimizer = PCGrad(adam(net.parameters()), tasks=TASKS)
    step(net, optimizer, 0)
    before = copy.deepcopy(optimizer.state_dict())
    others = SurgeryOptimizer(torch.optim.Adam(Network().parameters(), lr=7.0), "upgrad").state_dict()
    with pytest.raises(ValueError, match="expected the state of 'pcgrad'"):
        optimizer.load_state_dict(others)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][k]["exp_avg"], before["state"][k]["exp_avg"]) for k in before["state"])
    assert after["surgery"]["_extra_state"] == before["surgery"]["_extra_state"]


# --- misuse, and what an import costs ---------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    parameters = list(Network().parameters())
    with pytest.raises(TypeError, match="optimizer: expected one that steps on the gradients it finds, found LBFGS"):
        PCGrad(torch.optim.LBFGS(parameters))
    with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer, found list"):
        PCGrad(parameters)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no option 'temperature'"):
        PCGrad(adam(parameters), temperature=3)


def test_importing_gradsurgery_imports_no_framework() -> None:
    program = "import sys, gradsurgery; print({'accelerate', 'lightning', 'pytorch_lightning', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
