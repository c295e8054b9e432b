"""Surgery in accelerate's loop: micro-batches, precision and checkpoints, against the step by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
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
from ranks import accelerated
from ranks.launch import ranks
from tolerances import TOLERANCES
from torch import Tensor

import gradsurgery as gs
from gradsurgery.integrations.accelerate import backward

pytestmark = pytest.mark.usefixtures("own_accelerator")
STEPS = 2  # micro-batches a step


def accelerator(**options: Any) -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=STEPS, **options)


def prepared(accelerator: Accelerator, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    net = Network(dtype)
    return accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_surgery_on_each_micro_batch() -> None:
    """``accelerator.backward(surgery.total(losses))``: the accelerator's share of each, added up."""
    one = accelerator()
    net, optimizer = prepared(one)
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    expected: dict[str, Tensor | None] = dict.fromkeys(dict(net.named_parameters()))
    for number in range(STEPS):
        with one.accumulate(net):
            x, y = batch(number)
            each = losses(net(x), y)
            for name, grad in by_hand(net, net.trunk, [each]).items():
                assert grad is not None
                held = expected[name]
                expected[name] = grad / STEPS if held is None else held + grad / STEPS
            one.backward(surgery.total(each))
            assert one.sync_gradients == (number == STEPS - 1)
    assert_gradients(gradients(net), expected)
    before = net.trunk[0].weight.clone()
    optimizer.step()
    assert not torch.equal(before, net.trunk[0].weight)


@pytest.mark.parametrize("shared", ["named", "found"])
def test_one_surgery_on_all_micro_batches(shared: str) -> None:
    one = accelerator()
    net, optimizer = prepared(one)
    by_itself = Network()
    plain = torch.optim.SGD(by_itself.parameters(), lr=0.1)
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    conflicts = 0
    for number in range(0, 4 * STEPS, STEPS):
        steps = []
        for n in range(number, number + STEPS):
            x, y = batch(n)
            with one.accumulate(net):
                backward(one, surgery, losses(net(x), y), net.trunk if shared == "named" else None)
                optimizer.step()
                optimizer.zero_grad()
            steps.append({task: loss / STEPS for task, loss in losses(by_itself(x), y).items()})
        conflicts += conflict(steps, by_itself.trunk)
        for p, grad in zip(by_itself.parameters(), by_hand(by_itself, by_itself.trunk, steps).values(), strict=True):
            p.grad = grad
        plain.step()
        assert_same_parameters(net, by_itself, rtol=1e-12)
    assert conflicts > 0
    assert len(surgery.history) == 4, "one step of surgery a step"


def test_micro_batches_of_one_task_each() -> None:
    one = accelerator()
    net, _ = prepared(one)
    surgery = gs.GradientAggregator("pcgrad", order="ascending", tasks=TASKS)
    for number, task in enumerate(TASKS):
        x, y = batch(number)
        with one.accumulate(net):
            backward(one, surgery, losses(net(x), y, [task]))
    twin = Network()
    steps = []
    for number, task in enumerate(TASKS):
        x, y = batch(number)
        steps.append({task: losses(twin(x), y, [task])[task] / STEPS})
    assert conflict(steps, twin.trunk)
    assert_gradients(gradients(net), by_hand(twin, twin.trunk, steps))


def test_bfloat16() -> None:
    """Activations in bfloat16, parameters and gradients in float32, as without surgery."""
    one = accelerator(mixed_precision="bf16")
    net, optimizer = prepared(one, torch.float32)
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    exact = Network(torch.float32)
    steps = []
    seen = []
    net.trunk.register_forward_hook(lambda _, __, z: seen.append(z.dtype))
    for number in range(STEPS):
        x, y = batch(number, torch.float32)
        with one.accumulate(net):
            backward(one, surgery, losses(net(x), y), net.trunk)
        steps.append({task: loss / STEPS for task, loss in losses(exact(x), y).items()})
    assert set(seen) == {torch.bfloat16}
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    assert conflict(steps, exact.trunk)
    assert_gradients(gradients(net), by_hand(exact, exact.trunk, steps), rtol=8 * TOLERANCES[torch.bfloat16].rounding)
    optimizer.step()


def test_a_scaler() -> None:
    """float16 wants a GPU; the accelerator's scaler works on the CPU as well. A power of two changes nothing."""
    one, surgery = accelerator(), gs.GradientAggregator("pcgrad", order="ascending")
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    net, optimizer = prepared(one)
    twin = Network()
    steps = []
    for number in range(STEPS):
        x, y = batch(number)
        with one.accumulate(net):
            backward(one, surgery, losses(net(x), y))
        steps.append({task: loss / STEPS for task, loss in losses(twin(x), y).items()})
    expected = by_hand(twin, twin.trunk, steps)
    scaled = {name: None if g is None else g / 2**10 for name, g in gradients(net).items()}
    assert_gradients(scaled, expected)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    for p, old, grad in zip(net.parameters(), before, expected.values(), strict=True):
        assert grad is not None
        torch.testing.assert_close(p, old - 0.1 * grad)


def train(one: Accelerator, net: Any, optimizer: Any, surgery: gs.GradientAggregator, numbers: range) -> None:
    for number in numbers:
        x, y = batch(number)
        with one.accumulate(net):
            outputs = net(x)
            third = 2 * (outputs["seg"] + outputs["depth"] + 3 * y).abs().mean()  # with three tasks the random order matters
            backward(one, surgery, {**losses(outputs, y), "third": third}, net.trunk)
            optimizer.step()
            optimizer.zero_grad()


def test_resuming(tmp_path: Path) -> None:
    """``register_for_checkpointing(surgery)`` is all it takes to go on with the same numbers."""
    runs = []
    for seed in (5, 6):
        one = accelerator()
        net, optimizer = prepared(one)
        surgery = gs.GradientAggregator("pcgrad", seed=seed)
        one.register_for_checkpointing(surgery)
        runs.append((one, net, optimizer, surgery))
    train(*runs[0], range(4))
    runs[0][0].save_state(str(tmp_path))
    train(*runs[0], range(4, 12))
    runs[1][0].load_state(str(tmp_path))
    train(*runs[1], range(4, 12))
    assert_same_parameters(runs[0][1], runs[1][1])


def test_an_optimizer_with_pc_backward(tmp_path: Path) -> None:
    """PCGrad is prepared as the optimizer it is, and its orders are in the checkpoint with it."""
    runs = []
    for seed in (5, 6):
        one = Accelerator(cpu=True)
        plain = Network()
        surgery = gs.PCGrad(torch.optim.Adam(plain.parameters(), lr=0.05), seed=seed)
        net, optimizer = one.prepare(plain, surgery)
        assert optimizer.optimizer is surgery
        runs.append((one, net, optimizer, surgery))

    def go_on(net: Any, optimizer: Any, surgery: gs.PCGrad, numbers: range) -> None:
        for number in numbers:
            x, y = batch(number)
            outputs = net(x)
            surgery.pc_backward([*losses(outputs, y).values(), (outputs["seg"] + outputs["depth"] + 3 * y).abs().mean()])
            optimizer.step()
            optimizer.zero_grad()

    go_on(*runs[0][1:], range(4))
    runs[0][0].save_state(str(tmp_path))
    go_on(*runs[0][1:], range(4, 12))
    runs[1][0].load_state(str(tmp_path))
    go_on(*runs[1][1:], range(4, 12))
    assert_same_parameters(runs[0][1], runs[1][1])


def test_several_processes() -> None:
    """Two of them, with a model that the accelerator wrapped, find what one finds with their batches together."""
    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, seed=3)
    for step in range(2):
        optimizer.zero_grad()
        for micro in range(STEPS):
            parts = [losses(net(x), y) for x, y in map(batch, accelerated.numbers(step, micro, 2))]
            mean = {task: (parts[0][task] + parts[1][task]) / (2 * STEPS) for task in TASKS}
            (surgery.collect if micro < STEPS - 1 else surgery.backward)(mean, net.trunk)
        optimizer.step()
    found = ranks(2, accelerated.train, STEPS)
    for one in found:
        torch.testing.assert_close(one, torch.cat([p.detach().flatten() for p in net.parameters()]), rtol=1e-12, atol=1e-12)
    assert torch.equal(*found)


def test_what_is_refused() -> None:
    one = accelerator()
    net, _ = prepared(one)
    one.state.distributed_type = DistributedType.MULTI_CPU
    x, y = batch(0)
    with pytest.raises(RuntimeError, match=r"surgery: expected an aggregator with process_group= for DistributedType.MULTI_CPU"):
        backward(one, gs.GradientAggregator("pcgrad"), losses(net(x), y))
    one.state.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(RuntimeError, match=r"accelerator: expected one process without an engine"):
        backward(one, gs.GradientAggregator("pcgrad"), losses(net(x), y))
    assert all(p.grad is None for p in net.parameters())
