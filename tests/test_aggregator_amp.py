"""All forms under autocast and a gradient scaler, and what they must not disturb: batch statistics, memory, other optimizers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.pcgrad import pcgrad
from torch import Tensor, nn

import gradsurgery as gs

TASKS = ("seg", "depth", "normal")
Targets = dict[str, Tensor]


class Recurrent(nn.Module):
    """A recurrent trunk: all steps' outputs. [B, L, D] -> [B, L, H]"""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 8, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Network(nn.Module):
    def __init__(self, trunk: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = {
            "mlp": lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()),
            "norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()),
            "gru": lambda: Recurrent(nn.GRU),
            "lstm": lambda: Recurrent(nn.LSTM),
        }[trunk]()
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})
        self.shape = (4, 5) if trunk in ("gru", "lstm") else (12,)

    def batch(self) -> tuple[Tensor, Targets]:
        g = torch.Generator().manual_seed(11)
        return torch.randn(*self.shape, 6, generator=g), {t: torch.randn(*self.shape, 2, generator=g) for t in TASKS}

    def loss(self, task: str, features: Tensor, target: Tensor) -> Tensor:
        return (self.heads[task](features).float() - target).square().mean() * 2.0 ** TASKS.index(task)


Scaler = torch.amp.GradScaler
Step = Callable[[gs.GradientAggregator, Network, Tensor, Targets, Scaler], None]


def by_split(surgery: gs.GradientAggregator, net: Network, x: Tensor, y: Targets, scaler: Scaler) -> None:
    views = surgery.split(net.trunk(x), TASKS)
    losses = surgery.observe([net.loss(t, z, y[t]) for t, z in zip(TASKS, views, strict=True)])
    scaler.scale(torch.stack(losses).sum()).backward()


def by_detach(surgery: gs.GradientAggregator, net: Network, x: Tensor, y: Targets, scaler: Scaler) -> None:
    d = surgery.detach(net.trunk(x))
    for loss in surgery.observe([net.loss(task, d, y[task]) for task in TASKS]):
        scaler.scale(loss).backward()
    surgery.backward()


def by_losses(surgery: gs.GradientAggregator, net: Network, x: Tensor, y: Targets, scaler: Scaler) -> None:
    z = net.trunk(x)
    surgery.backward({task: net.loss(task, z, y[task]) for task in TASKS}, scaler=scaler)


def by_total(surgery: gs.GradientAggregator, net: Network, x: Tensor, y: Targets, scaler: Scaler) -> None:
    z = net.trunk(x)
    scaler.scale(surgery.total({task: net.loss(task, z, y[task]) for task in TASKS})).backward()


def by_collected(surgery: gs.GradientAggregator, net: Network, x: Tensor, y: Targets, scaler: Scaler) -> None:
    z = net.trunk(x)
    surgery.collect({task: net.loss(task, z, y[task]) for task in TASKS}, scaler=scaler)
    surgery.backward(scaler=scaler)


FORMS: dict[str, Step] = {"split": by_split, "detach": by_detach, "losses": by_losses, "total": by_total, "collect": by_collected}
OF_REPRESENTATIONS = ("split", "detach")
BF16, FP16 = torch.bfloat16, torch.float16


def aggregator(method: str = "pcgrad", **options: Any) -> gs.GradientAggregator:
    return gs.GradientAggregator(method, tasks=TASKS, order="ascending", **options)


def by_hand(net: Network, x: Tensor, y: Targets, scale: float, representation: bool) -> dict[str, Tensor]:
    """T separate passes of the scaled losses, explicit float64 projection, and for representations one pass through the trunk."""
    z = net.trunk(x)
    trunk = list(net.trunk.parameters())
    across = [z] if representation else trunk
    rows, result = [], {}
    for task in TASKS:
        own = dict(net.heads[task].named_parameters(prefix=f"heads.{task}"))
        found = torch.autograd.grad(net.loss(task, z, y[task]) * scale, [*across, *own.values()], retain_graph=True)
        rows.append(torch.cat([g.double().flatten() for g in found[: len(across)]]))
        result |= dict(zip(own, found[len(across) :], strict=True))
    assert any(a @ b < 0 for a in rows for b in rows), "surgery must matter"
    pieces = pcgrad(torch.stack(rows), order="ascending").split([p.numel() for p in across])
    combined = [piece.view_as(p) for piece, p in zip(pieces, across, strict=True)]
    if representation:
        combined = list(torch.autograd.grad([z], trunk, [combined[0].to(z.dtype)]))
    result |= {name: g for (name, _), g in zip(net.trunk.named_parameters(prefix="trunk"), combined, strict=True)}
    return {name: g.double() / scale for name, g in result.items()}


def assert_gradients(net: Network, expected: dict[str, Tensor], rtol: float) -> None:
    largest = max(float(g.abs().max()) for name, g in expected.items() if name.startswith("trunk"))
    for name, p in net.named_parameters():
        assert p.grad is not None
        error = float((p.grad.double() - expected[name]).abs().max())
        assert error <= rtol * largest if name.startswith("trunk") else error == 0.0, f"{name}: {error} of {largest}"


@functools.cache
def obstacle(trunk: str, dtype: torch.dtype) -> str | None:
    """Why this machine cannot run a network in a type: the CPU's instructions decide which recurrent ones torch has."""
    net = Network(trunk)
    try:
        with torch.autocast("cpu", dtype=dtype):
            net.trunk(net.batch()[0])
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("trunk", "dtype"),
    # No CPU has an LSTM in float16.
    [("mlp", BF16), ("mlp", FP16), ("gru", BF16), ("gru", FP16), ("lstm", BF16)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_autocast_and_scaler_equal_the_hand_written_step(form: str, trunk: str, dtype: torch.dtype) -> None:
    if trunk == "lstm" and obstacle(trunk, dtype):
        pytest.skip(f"torch has no {trunk} in {dtype} on this CPU: {obstacle(trunk, dtype)}")
    net, expected = Network(trunk), Network(trunk)
    x, y = net.batch()
    scaler = Scaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    surgery = aggregator()
    representation = form in OF_REPRESENTATIONS
    with torch.autocast("cpu", dtype=dtype):
        FORMS[form](surgery, net, x, y, scaler)
        gradients = by_hand(expected, x, y, 2.0**10, representation)
    scaler.unscale_(optimizer)
    # What is combined before it has run through the whole trunk is rounded to 16 bits on its way; collected gradients are not.
    assert_gradients(net, gradients, rtol=1e-5 if form == "collect" else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["gradvac", "pcgrad", "moco"])
def test_an_overflow_in_one_task_leaves_no_trace_in_the_memory(form: str, method: str) -> None:
    net = Network("mlp")
    x, y = net.batch()
    scaler = Scaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    surgery = gs.GradientAggregator(method, tasks=TASKS)

    def step(targets: Targets) -> None:
        with torch.autocast("cpu", dtype=FP16):
            FORMS[form](surgery, net, x, targets, scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(y)
    before = copy.deepcopy({"memory": surgery.state_dict(), "net": net.state_dict()})
    step(y | {"depth": y["depth"] * 1e6})  # a finite loss, whose gradient is not finite in float16
    assert surgery.statistics().nonfinite
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(value, before["net"][name]) for name, value in net.state_dict().items())
    for name, value in surgery.state_dict().items():
        known = before["memory"][name]
        if isinstance(value, Tensor):
            assert torch.equal(value, known), name
        else:
            assert value == {**known, "step": known["step"] + 1}
    step(y)
    assert not surgery.statistics().nonfinite
    assert not torch.equal(net.state_dict()["trunk.0.weight"], before["net"]["trunk.0.weight"])


@pytest.mark.parametrize("form", FORMS)
def test_batch_statistics_are_updated_once(form: str) -> None:
    net, plain = Network("norm"), Network("norm")
    x, y = net.batch()
    FORMS[form](aggregator(), net, x, y, Scaler("cpu", enabled=False))
    plain.trunk(x)
    for name, value in net.trunk.state_dict().items():
        assert torch.equal(value, plain.trunk.state_dict()[name]), name
    assert net.trunk[1].num_batches_tracked == 1


@pytest.mark.parametrize("form", ["losses", "total", "collect"])
@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_the_norm_of_the_result_is_known_without_reading_it(form: str, scale: float | None) -> None:
    net = Network("mlp")
    x, y = net.batch()
    scaler = Scaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    surgery = aggregator()
    FORMS[form](surgery, net, x, y, scaler)
    norm = surgery.statistics().norm
    written = torch.cat([p.grad.double().flatten() for p in net.trunk.parameters()]).norm().item()
    assert written == pytest.approx(norm * (scale or 1.0), rel=1e-6)

    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.1))
    before = [p.grad.clone() for p in net.parameters()]
    nn.utils.clip_grads_with_norm_(net.trunk.parameters(), 0.5 * norm, torch.tensor(norm))
    clipped = [p.grad for p in net.trunk.parameters()]
    assert torch.cat([g.flatten() for g in clipped]).norm().item() == pytest.approx(0.5 * norm, rel=1e-5)
    assert all(
        torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True) if not any(p.grad is c for c in clipped)
    )


@pytest.mark.parametrize("form", FORMS)
def test_several_optimizers_under_one_scaler(form: str) -> None:
    """An overflow in one task's head stops that head and the trunk; the other heads' optimizers go on."""
    net = Network("mlp")
    x, y = net.batch()
    scaler = Scaler("cpu", init_scale=2.0**10)
    parts = {"trunk": net.trunk, **net.heads}
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in parts.items()}
    before = copy.deepcopy(net)
    with torch.autocast("cpu", dtype=FP16):
        FORMS[form](aggregator(), net, x, y | {"depth": y["depth"] * 1e6}, scaler)
    for optimizer in optimizers.values():
        scaler.step(optimizer)
    scaler.update()
    unchanged = {
        name: all(
            torch.equal(p, q)
            for p, q in zip(part.parameters(), {"trunk": before.trunk, **before.heads}[name].parameters(), strict=True)
        )
        for name, part in parts.items()
    }
    assert unchanged == {"trunk": True, "seg": False, "depth": True, "normal": False}
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("first", [None, 2.0**8])
def test_a_total_that_is_multiplied_multiplies_what_was_collected(first: float | None) -> None:
    """As by a Trainer that divides the last of several losses: the weights stay, and all of ``.grad`` is divided."""
    net, expected = Network("mlp"), Network("mlp")
    x, y = net.batch()
    surgery, unscaled = aggregator(), aggregator()
    scaler = Scaler("cpu", init_scale=first or 1.0, enabled=first is not None)
    for model, operate in ((net, surgery), (expected, unscaled)):
        early, late = ({task: model.loss(task, model.trunk(part), y[task][k]) for task in TASKS} for k, part in halves(x))
        if model is net:
            operate.collect(early, scaler=scaler)
            (operate.total(late) / 4).backward()
        else:
            operate.collect(early)
            operate.backward(late)
    torch.testing.assert_close(surgery.statistics().gram, unscaled.statistics().gram, rtol=1e-5, atol=0.0)
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad / 4, rtol=1e-5, atol=1e-6)


def halves(x: Tensor) -> list[tuple[slice, Tensor]]:
    """Two micro-batches, and where they lie."""
    middle = len(x) // 2
    return [(part, x[part]) for part in (slice(None, middle), slice(middle, None))]
