"""GradNorm against the paper's algorithm with a double backward, and its own resume."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from balancers.problems import same
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers.gradnorm import gradnorm_gradient


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.shared = nn.Linear(16, 8)
        self.heads = nn.ModuleDict({t: nn.Linear(8, 2) for t in "abc"})

    def losses(self, z: Any, seed: int = 0) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        views = z if isinstance(z, tuple) else (z,) * 3
        return {
            t: factor * (self.heads[t](view) - torch.randn(9, 2, generator=g)).square().mean()
            for t, view, factor in zip("abc", views, (1.0, 10.0, 0.1), strict=True)
        }

    def features(self, seed: int = 0) -> Tensor:
        return self.shared(self.trunk(torch.randn(9, 6, generator=torch.Generator().manual_seed(seed))))  # type: ignore[no-any-return]


def paper(net: Net, w: Tensor, initial: dict[str, float], alpha: float, seed: int) -> Tensor:
    """Algorithm 1 of the paper, with create_graph and a double backward. -> d/dw, [T]"""
    losses = net.losses(net.features(seed), seed)
    w = w.clone().requires_grad_()
    norms = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(w[t] * loss, list(net.shared.parameters()), create_graph=True)]
            ).norm()
            for t, loss in enumerate(losses.values())
        ]
    )
    ratios = torch.stack([loss.detach() / initial[name] for name, loss in losses.items()])
    target = (norms.mean() * (ratios / ratios.mean()) ** alpha).detach()
    (gradient,) = torch.autograd.grad((norms - target).abs().sum(), w)
    return gradient


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_layer_equals_the_paper(alpha: float) -> None:
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared, alpha=alpha)
    first = {t: v.item() for t, v in net.losses(net.features(0), 0).items()}
    balancer(net.losses(net.features(0), 0)).backward()
    with torch.no_grad():
        balancer.task_weights.copy_(torch.tensor([0.5, 1.5, 1.0]))
    balancer.task_weights.grad = None
    net.zero_grad()
    total = balancer(net.losses(net.features(1), 1))
    total.backward()
    expected = paper(net, torch.tensor([0.5, 1.5, 1.0]), first, alpha, seed=1)
    torch.testing.assert_close(balancer.task_weights.grad, expected, rtol=1e-5, atol=1e-6)
    # The network gets the gradient of the weighted loss, and nothing of the balancer's objective.
    got = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
    net.zero_grad()
    losses = net.losses(net.features(1), 1)
    plain = 0.5 * losses["a"] + 1.5 * losses["b"] + losses["c"]
    torch.testing.assert_close(total, plain)
    plain.backward()
    for a, p in zip(got, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("source", ["layer", "aggregator"])
@pytest.mark.parametrize("absent", [None, "b"])
def test_softmax_parametrisation_is_the_chain_rule(source: str, absent: str | None) -> None:
    """d/ds of w = T softmax(s), among the tasks present; one that is absent keeps its s."""
    net = Net()
    surgery = gs.GradientAggregator("sum", tasks=tuple("abc"))
    where: Any = {"layer": net.shared} if source == "layer" else {"aggregator": surgery}
    balancer = gs.GradNorm(tuple("abc"), parametrisation="softmax", initial_losses=(1.0, 1.0, 1.0), **where)
    s = torch.tensor([0.3, -0.5, 1.1])
    with torch.no_grad():
        balancer.task_weights.copy_(s)
    z = net.features()
    losses = {t: v for t, v in net.losses(surgery.split(z, 3)).items() if t != absent}
    plain = {t: v for t, v in net.losses(z).items() if t != absent}
    at = [t for t, name in enumerate("abc") if name != absent]
    over = list(net.shared.parameters()) if source == "layer" else [z]
    norms = torch.stack(
        [torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, over, retain_graph=True)]).norm() for v in plain.values()]
    )
    share = (3 * s.softmax(0))[at].sum()
    free = s[at].clone().requires_grad_()
    w = share * free.softmax(0)
    ratios = torch.stack(list(plain.values())).detach()
    target = ((w * norms).mean() * (ratios / ratios.mean()) ** 1.5).detach()
    (expected,) = torch.autograd.grad((w * norms - target).abs().sum(), free)
    balancer(losses).backward()
    grad = balancer.task_weights.grad
    assert grad is not None
    torch.testing.assert_close(grad[at], expected, rtol=1e-4, atol=1e-6)
    if absent:
        assert grad[1] == 0
    torch.testing.assert_close(balancer.weights, 3 * s.softmax(0))
    assert torch.equal(balancer.task_weights, s), "logits are not renormalised"


@pytest.mark.parametrize("form", ["split", "detach"])
@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_aggregator_equals_norms_at_the_representation(form: str, scale: float) -> None:
    """The norms come from the Gram matrix of the weighted losses; a loss scale goes through to w's gradient as to any other."""
    net = Net()
    surgery = gs.GradientAggregator("pcgrad", tasks=tuple("abc"))
    balancer = gs.GradNorm(tuple("abc"), aggregator=surgery)
    w = torch.tensor([0.4, 0.6, 2.0])
    with torch.no_grad():
        balancer.task_weights.copy_(w)
    z = net.features()
    norms = torch.stack([torch.autograd.grad(v, z, retain_graph=True)[0].norm() for v in net.losses(z).values()])
    if form == "split":
        (scale * balancer(net.losses(surgery.split(z)))).backward()
    else:
        d = surgery.detach(z)
        for name, term in balancer.weighted(net.losses(d)).items():
            with surgery.task(name):
                (scale * term).backward()
        surgery.backward()
    expected = scale * gradnorm_gradient(w * norms, w, torch.ones(3), 1.5)  # first call: L = L(0), so all rates are 1
    torch.testing.assert_close(balancer.task_weights.grad, expected, rtol=1e-5, atol=1e-6)


def test_weights_are_renormalised_and_stay_positive() -> None:
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared)
    optimizer = torch.optim.SGD(balancer.parameters(), lr=50.0)
    for _ in range(3):
        optimizer.zero_grad()
        balancer(net.losses(net.features())).backward()
        optimizer.step()
        assert balancer.weights.sum().item() == pytest.approx(3.0, rel=1e-6)
        assert (balancer.weights > 0).all()
        balancer(net.losses(net.features()))
        assert balancer.task_weights.sum().item() == pytest.approx(3.0, rel=1e-6)


def test_balances_the_gradient_norms() -> None:
    """With alpha = 0 the norms of the weighted gradients become equal, though the losses differ a hundredfold."""
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared, alpha=0.0)
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        balancer(net.losses(net.features())).backward()
        optimizer.step()
    norms = []
    for name, weight in zip("abc", balancer.weights, strict=True):
        grads = torch.autograd.grad(weight * net.losses(net.features())[name], list(net.shared.parameters()))
        norms.append(torch.cat([g.reshape(-1) for g in grads]).norm())
    assert max(norms) / min(norms) < 1.3
    plain = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, list(net.shared.parameters()), retain_graph=True)]).norm()
        for v in net.losses(net.features()).values()
    ]
    assert max(plain) / min(plain) > 30


def test_a_first_loss_that_overflows_is_no_initial_loss() -> None:
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared)
    losses = net.losses(net.features())
    balancer({**losses, "b": losses["b"] * float("inf")}).backward()
    assert balancer.task_weights.grad is not None
    assert balancer.task_weights.grad.isnan().any(), "a broken step is not taken for a balanced one"
    balancer.task_weights.grad = None
    for seed in (1, 2):
        balancer(net.losses(net.features(seed), seed)).backward()
    assert balancer.task_weights.grad.isfinite().all()
    assert (balancer.task_weights.grad != 0).all()


def test_absent_task() -> None:
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared)
    losses = net.losses(net.features())
    del losses["b"]
    balancer(losses).backward()
    grad = balancer.task_weights.grad
    assert grad is not None
    assert grad[1] == 0
    assert (grad[[0, 2]] != 0).all()


@pytest.mark.parametrize(
    ("options", "initial"),
    [
        ({}, (1.0, 5.0)),
        ({"initial_steps": 2}, (1.5, 6.0)),
        ({"initial_losses": (4.0, 2.0)}, (4.0, 2.0)),
        ({"initial_losses": {"b": 2.0, "a": 4.0}}, (4.0, 2.0)),
    ],
)
def test_initial_loss_policy(options: dict[str, Any], initial: tuple[float, float]) -> None:
    """Three steps with losses (1, 5), (2, 7), (3, 9): the first, the mean of the first two, or what was given."""
    shared = nn.Parameter(torch.ones(()))
    balancer = gs.GradNorm(("a", "b"), layer=shared, **options)
    for a, b in ((1.0, 5.0), (2.0, 7.0), (3.0, 9.0)):
        balancer({"a": a * shared, "b": b * shared}).backward()
    ratios = torch.tensor([3.0, 9.0]) / torch.tensor(initial)
    # Both norms equal w_t times the loss here, so the gradient tells the rates: sign(w n - mean(w n) r^alpha) n.
    balancer.task_weights.grad = None
    w = balancer.weights
    balancer({"a": 3.0 * shared, "b": 9.0 * shared}).backward()
    n = torch.tensor([3.0, 9.0])
    torch.testing.assert_close(balancer.task_weights.grad, gradnorm_gradient(w * n, w, ratios / ratios.mean(), 1.5))
    torch.testing.assert_close(balancer._initial, torch.tensor(initial))


def test_eval_leaves_state_alone() -> None:
    net = Net()
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared).eval()
    before = copy.deepcopy(dict(balancer.state_dict()))
    balancer(net.losses(net.features()))
    assert same(dict(balancer.state_dict()), before)


def test_measuring_a_layer_takes_no_step_of_surgery() -> None:
    net = Net()
    surgery = gs.GradientAggregator("pcgrad", tasks=tuple("abc"))
    balancer = gs.GradNorm(tuple("abc"), layer=net.shared)
    total = balancer(net.losses(surgery.split(net.features())))
    assert not surgery.history
    assert surgery.key[1] == 0
    total.backward()
    assert len(surgery.history) == 1
    expected = Net()
    reference = gs.GradNorm(tuple("abc"), layer=expected.shared)
    reference(expected.losses(expected.features())).backward()
    torch.testing.assert_close(balancer.task_weights.grad, reference.task_weights.grad)


@pytest.mark.parametrize("source", ["layer", "aggregator"])
def test_resumes_to_the_same_bits(source: str, tmp_path: Path) -> None:
    def fresh() -> tuple[Net, gs.GradientAggregator, gs.GradNorm, torch.optim.Optimizer]:
        net = Net()
        surgery = gs.GradientAggregator("pcgrad", tasks=tuple("abc"))
        where = {"layer": net.shared} if source == "layer" else {"aggregator": surgery}
        balancer = gs.GradNorm(tuple("abc"), initial_steps=3, **where)
        return net, surgery, balancer, torch.optim.Adam([*net.parameters(), *balancer.parameters()], lr=0.01)

    def run(parts: tuple[Any, ...], steps: range) -> None:
        net, surgery, balancer, optimizer = parts
        for seed in steps:
            optimizer.zero_grad()
            balancer(net.losses(surgery.split(net.features(seed)), seed)).backward()
            optimizer.step()

    whole = fresh()
    run(whole, range(8))
    half = fresh()
    run(half, range(4))
    torch.save([part.state_dict() for part in half], tmp_path / "half.pt")
    resumed = fresh()
    for part, state in zip(resumed, torch.load(tmp_path / "half.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(resumed, range(4, 8))
    for a, b in zip(whole, resumed, strict=True):
        if isinstance(a, nn.Module):
            for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
                assert x == y if isinstance(x, dict) else torch.equal(x, y), name


def test_a_replaced_balancer_stops_listening() -> None:
    net = Net()
    surgery = gs.GradientAggregator("pcgrad", tasks=tuple("abc"))
    for _ in range(2):
        balancer = gs.GradNorm(tuple("abc"), aggregator=surgery)
        balancer(net.losses(surgery.split(net.features()))).backward()
        assert balancer.task_weights.grad is not None
    assert len(surgery._history._step_hooks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"])
def test_a_copy_says_that_it_hears_no_aggregator(copied: Callable[[gs.GradNorm], gs.GradNorm]) -> None:
    net = Net()
    surgery = gs.GradientAggregator("pcgrad", tasks=tuple("abc"))
    balancer = gs.GradNorm(tuple("abc"), aggregator=surgery)
    other = copied(balancer)
    losses = net.losses(surgery.split(net.features(), 3))
    with pytest.raises(RuntimeError, match="GradNorm: expected an aggregator to listen to, found a copy, which has none"):
        other(losses)
    torch.testing.assert_close(other.eval()(losses), balancer(losses))
    balancer(losses).backward()
    assert balancer.task_weights.grad is not None


def test_tasks_of_another_aggregator_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks: expected the aggregator's \(a, b\) among them, found \['x', 'y'\]"):
        gs.GradNorm(("x", "y"), aggregator=gs.GradientAggregator("sum", tasks=("a", "b")))


def test_errors() -> None:
    surgery = gs.GradientAggregator("pcgrad")
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"exactly one of aggregator= .* and layer="):
        gs.GradNorm(2)
    with pytest.raises(ValueError, match="exactly one of"):
        gs.GradNorm(2, aggregator=surgery, layer=layer)
    with pytest.raises(ValueError, match="alpha: expected a finite number >= 0, found -1"):
        gs.GradNorm(2, layer=layer, alpha=-1)
    with pytest.raises(ValueError, match="initial_steps: expected an integer >= 1, found 0"):
        gs.GradNorm(2, layer=layer, initial_steps=0)
    with pytest.raises(ValueError, match="parametrisation: expected one of 'weights', 'softmax', found 'log'"):
        gs.GradNorm(2, layer=layer, parametrisation="log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"initial_losses: expected one number or 2 \(0, 1\)"):
        gs.GradNorm(2, layer=layer, initial_losses=(1.0,))
    with pytest.raises(ValueError, match=r"initial_losses: expected one number or 2 \(a, b\)"):
        gs.GradNorm(("a", "b"), layer=layer, initial_losses={"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match=r"initial_losses\['1'\]: expected a finite number > 0, found 0.0"):
        gs.GradNorm(2, layer=layer, initial_losses=(1.0, 0.0))
    with pytest.raises(ValueError, match="layer: expected a module or parameters"):
        gs.GradNorm(2, layer=layer.requires_grad_(False))
    with pytest.raises(ValueError, match="does not reach the shared layer"):
        gs.GradNorm(1, layer=nn.Linear(2, 2))([torch.ones(1, requires_grad=True).sum()])
    balancer = gs.GradNorm(2, aggregator=surgery)
    assert balancer.training
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"surgery took place before balancer\(losses\)"):
        sum(z.sum() for z in surgery.split(x * 1, 2)).backward()  # type: ignore[union-attr]
