"""What a user can do wrong with form C, what it says, and that no .grad has changed then, nor anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES
from parameters.comparison import aggregator, ascending, assert_gradients, grads, untouched
from parameters.models import TASKS, Network, Perceptron, build
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

ERRORS = (TypeError, ValueError, RuntimeError)


def assert_goes_on(surgery: gs.GradientAggregator, network: Network, **options: Any) -> None:
    """The step after the error is right: nothing is left of the one that failed."""
    plain = build("perceptron")
    network.zero_grad()
    surgery.backward(network.losses(5), **options)
    rows = oracle.separate(plain, lambda: plain.losses(5))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
    assert len(surgery.history) == 1


Call = Callable[[gs.GradientAggregator, Any, dict[str, Tensor]], Any]

REFUSED: dict[str, tuple[Call, str]] = {
    # losses
    "without grad": (lambda s, n, x: s.backward({**x, "b": x["b"].detach()}), r"losses\['b'\].*grad"),
    "without grad in a list": (lambda s, n, x: s.backward({**x, "b": [x["b"], x["a"].detach()]}), r"losses\['b'\].*grad"),
    "a number": (lambda s, n, x: s.backward({**x, "c": 1.0}), r"losses\['c'\].*float"),
    "a complex number": (lambda s, n, x: s.backward({**x, "b": x["b"].to(torch.complex64)}), r"losses\['b'\].*real.*complex64"),
    "no scalar": (lambda s, n, x: s.backward({**x, "b": x["b"] * torch.ones(3)}), r"losses\['b'\].*scalar.*\[3\]"),
    "no scalar in a list": (lambda s, n, x: s.backward({**x, "b": [x["b"] * torch.ones(3)]}), r"losses\['b'\].*scalar.*\[3\]"),
    "an empty dict": (lambda s, n, x: s.backward({}), "losses"),
    "an empty sequence": (lambda s, n, x: s.backward([]), "losses"),
    "all absent": (lambda s, n, x: s.backward(dict.fromkeys(x)), "losses"),
    "all absent in a sequence": (lambda s, n, x: s.backward([None] * 3), "losses"),
    "an unknown name": (lambda s, n, x: s.backward({**x, "edges": x["a"] * 1}), "tasks: expected one of a, b, c, found 'edges'"),
    "too few": (lambda s, n, x: s.backward([x["a"], x["b"]]), "expected 3.*found 2"),
    "too many": (lambda s, n, x: s.backward([*x.values(), x["a"] * 1]), "expected 3.*found 4"),
    "their sum": (lambda s, n, x: s.backward(sum(x.values())), "losses.*found Tensor"),
    "a string": (lambda s, n, x: s.backward("abc"), "losses.*found str"),
    # shared
    "a parameter twice": (
        lambda s, n, x: s.backward(x, shared=[n.trunk[0].weight, n.trunk[2].weight, n.trunk[0].weight]),
        "shared",
    ),
    "a module twice": (lambda s, n, x: s.backward(x, shared=[*n.trunk.parameters(), *n.trunk[0].parameters()]), "shared"),
    "names twice": (lambda s, n, x: s.backward(x, shared=[*n.named_parameters(), *n.named_parameters()]), "shared"),
    "that no task reaches": (lambda s, n, x: s.backward(x, shared=nn.Linear(2, 2)), "shared"),
    "frozen": (lambda s, n, x: s.backward(x, shared=nn.Linear(2, 2).requires_grad_(False)), "shared"),
    "without parameters": (lambda s, n, x: s.backward(x, shared=nn.Tanh()), "shared"),
    "no parameters": (lambda s, n, x: s.backward(x, shared=["trunk"]), "shared.*str"),
    "a string for a module": (lambda s, n, x: s.backward(x, shared="trunk"), "shared.*str"),
    "no leaf": (lambda s, n, x: s.backward(x, shared=[n.trunk[0].weight * 1]), r"shared\[0\]"),
    # the others
    "inputs: none": (lambda s, n, x: s.backward(x, inputs=[]), "inputs"),
    "inputs: no tensors": (lambda s, n, x: s.backward(x, inputs=["trunk"]), "inputs.*str"),
    "gram_on: not shared": (lambda s, n, x: s.backward(x, gram_on=nn.Linear(2, 2)), "gram_on"),
    "gram_on: none": (lambda s, n, x: s.backward(x, gram_on=[]), "gram_on"),
    "gram_on: a head": (lambda s, n, x: s.backward(x, shared=n.trunk, gram_on=n.heads["a"]), "gram_on"),
    "gram_on: batched": (lambda s, n, x: s.backward(x, gram_on=n.trunk[2], passes="batched"), "passes"),
    "memory: batched": (lambda s, n, x: s.backward(x, memory="low", passes="batched"), "passes"),
    "memory": (lambda s, n, x: s.backward(x, memory="tiny"), "memory.*'full'.*'low'.*'tiny'"),
    "passes": (lambda s, n, x: s.backward(x, passes="parallel"), "passes.*'sequential'.*'batched'.*'parallel'"),
    "scaler": (lambda s, n, x: s.backward(x, scaler=1024.0), "scaler.*GradScaler.*float"),
    # collect and total refuse the same
    "collect: without grad": (lambda s, n, x: s.collect({**x, "b": x["b"].detach()}), r"losses\['b'\].*grad"),
    "collect: an empty dict": (lambda s, n, x: s.collect({}), "losses"),
    "collect: an unknown name": (lambda s, n, x: s.collect({**x, "edges": x["a"] * 1}), "found 'edges'"),
    "collect: a parameter twice": (lambda s, n, x: s.collect(x, shared=[n.trunk[0].bias] * 2), "shared"),
    "total: without grad": (lambda s, n, x: s.total({**x, "b": x["b"].detach()}), r"losses\['b'\].*grad"),
    "total: no scalar": (lambda s, n, x: s.total({**x, "b": x["b"] * torch.ones(3)}), r"losses\['b'\].*scalar"),
    "total: an empty dict": (lambda s, n, x: s.total({}), "losses"),
    "total: an unknown name": (lambda s, n, x: s.total({**x, "edges": x["a"] * 1}), "found 'edges'"),
    "nothing captured": (lambda s, n, x: s.backward(), "backward"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    network, surgery = build("perceptron"), aggregator()
    with untouched(network), pytest.raises(ERRORS, match=message):
        call(surgery, network, network.losses())
    assert surgery.tasks == TASKS
    assert_goes_on(surgery, network)


def test_a_refused_name_is_not_remembered() -> None:
    """Tasks that are not declared become known by a step that succeeds."""
    network = build("perceptron")
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    losses = network.losses()
    with untouched(network), pytest.raises(ERRORS, match="grad"):
        surgery.backward({"other": losses["a"], "b": losses["b"].detach()})
    losses["b"].register_hook(lambda g: 1 / 0)  # an error in the middle
    with untouched(network), pytest.raises(ZeroDivisionError):
        surgery.backward({"other": losses["a"], "b": losses["b"]})
    surgery.backward(network.losses())
    assert surgery.tasks == TASKS


def test_nothing_is_shared() -> None:
    one, other = build("perceptron"), build("perceptron")
    surgery = aggregator()
    both = nn.ModuleList([one, other])
    with untouched(both), pytest.raises(ERRORS, match="shared"):
        surgery.backward({"a": one.losses()["a"], "b": other.losses()["b"]})
    assert_goes_on(surgery, one)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
def test_a_second_backward_pass_without_the_graph(options: dict[str, Any]) -> None:
    network, surgery = build("tied"), aggregator()
    losses = network.losses()
    surgery.backward(losses)
    with untouched(network), pytest.raises(RuntimeError, match="retain_graph"):
        surgery.backward(losses, **options)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_reentrant_checkpoints(options: dict[str, Any]) -> None:
    network = build("perceptron")
    trunk = network.trunk

    class Reentrant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(trunk, x.requires_grad_(), use_reentrant=True)  # type: ignore[no-any-return]

    network.trunk = Reentrant()
    for call in (aggregator().backward, aggregator().collect):
        with untouched(nn.ModuleList([trunk, network.heads])), pytest.raises(ERRORS, match="use_reentrant"):
            call(network.losses(), shared=trunk, **(options if call.__name__ == "backward" else {}))


def test_complex_parameters() -> None:
    """Shared ones are refused; a head may have them, as it only gets its own gradient."""
    network = build("perceptron")
    turn = nn.Parameter(torch.tensor([1.0 + 2.0j, 0.5j], dtype=torch.complex128))
    network.heads["a"].register_parameter("turn", turn)  # type: ignore[index]
    losses, energy = network.losses(), (turn * (1 + 1j)).abs().sum()
    with untouched(network), pytest.raises(ERRORS, match="complex"):
        aggregator().backward({task: loss + energy for task, loss in losses.items()})
    losses = network.losses()
    aggregator().backward({**losses, "a": losses["a"] + (turn * (1 + 1j)).abs().sum()})
    (expected,) = torch.autograd.grad((turn * (1 + 1j)).abs().sum(), turn)
    assert turn.grad is not None
    assert torch.equal(turn.grad, expected)


@pytest.mark.parametrize("shared", ["found", "parameters"])
def test_layers_without_names(shared: str) -> None:
    network = build("perceptron")
    given = None if shared == "found" else network.trunk.parameters()  # type: ignore[union-attr]
    with untouched(network), pytest.raises(ERRORS, match=r"group_by.*name"):
        aggregator(group_by="layer").backward(network.losses(), shared=given)


@pytest.mark.parametrize("method", ["graddrop", "median", "excessmtl"])
@pytest.mark.parametrize("asked", ["gram_on", "memory"])
def test_a_weighted_pass_for_a_method_without_weights(method: str, asked: str) -> None:
    network = build("perceptron")
    options = {"gram_on": network.trunk[2]} if asked == "gram_on" else {"memory": "low"}  # type: ignore[index]
    with untouched(network), pytest.raises(ValueError, match=asked):
        aggregator(method).backward(network.losses(), **options)


# --- errors in the middle ---------------------------------------------------------------------------------------------------------


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ArithmeticError("a backward pass that raises")


class Breaking(Perceptron):
    """One head's backward pass raises, before or after it has reached its own parameters."""

    broken: str | None = None
    early = True

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(7, 4))
        seen = {task: _Raising.apply(z) if task == self.broken and not self.early else z for task in TASKS}
        losses = self.each({task: head(seen[task]) for task, head in self.heads.items()})
        return {task: _Raising.apply(loss) if task == self.broken and self.early else loss for task, loss in losses.items()}


def breaking(task: str, early: bool) -> Breaking:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        network = Breaking().double()
    network.broken, network.early = task, early
    return network


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_a_backward_pass_that_raises(task: str, early: bool, options: dict[str, Any]) -> None:
    network = breaking(task, early)
    surgery = aggregator()
    with untouched(network), pytest.raises((*ERRORS, ArithmeticError)):
        surgery.backward(network.losses(), **options)
    network.broken = None
    assert_goes_on(surgery, network)


@pytest.mark.parametrize("task", TASKS)
def test_a_total_whose_backward_pass_raises(task: str) -> None:
    network = breaking(task, early=False)
    surgery = aggregator()
    with untouched(network), pytest.raises(ArithmeticError, match="a backward pass that raises"):
        surgery.total(network.losses()).backward()
    network.broken = None
    assert_goes_on(surgery, network)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("call", ["collect", "backward"])
def test_a_batch_that_raises_leaves_the_window_as_it_was(task: str, call: str) -> None:
    """Its gradients are in the window or are not; never those of the tasks before the one that failed."""
    network, plain = breaking(task, early=False), build("perceptron")
    surgery = aggregator()
    network.broken = None
    surgery.collect(network.losses(0))
    network.broken = task
    with untouched(network), pytest.raises(ArithmeticError, match="a backward pass that raises"):
        getattr(surgery, call)(network.losses(1))
    network.broken = None
    surgery.backward(network.losses(2))
    rows = oracle.added(*(oracle.separate(plain, lambda seed=seed: plain.losses(seed)) for seed in (0, 2)))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_a_method_that_refuses_leaves_all_gradients() -> None:
    """Three tasks are the fewest that a trimmed mean takes, which is known when two have propagated."""
    network, plain, surgery = build("perceptron"), build("perceptron"), aggregator("trimmed_mean")
    losses = network.losses()
    with untouched(network), pytest.raises(ValueError, match="trim"):
        surgery.backward({"a": losses["a"], "b": losses["b"]})
    surgery.backward(network.losses())
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["trimmed_mean"]), rows)


def test_buffers_of_other_parameters() -> None:
    """A method with buffers of the gradients' shape is given those of another network."""
    network, other = build("perceptron"), build("overlapping-heads")
    surgery = aggregator("excessmtl")
    surgery.backward(network.losses(), shared=network.trunk)
    with untouched(other), pytest.raises(ERRORS, match=r"buffers|positions|shape"):
        surgery.backward(other.losses(), shared=other.trunk)


# --- NaN --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in ("pcgrad", "gradvac", "mgda", "cagrad", "nashmtl", "crmogm", "excessmtl", "moco")),
        *((name, {"memory": "low"}) for name in ("pcgrad", "gradvac", "mgda", "cagrad", "nashmtl", "crmogm")),
    ],
)
def test_one_task_that_is_not_finite(method: str, value: float, options: dict[str, Any]) -> None:
    """The trunk is NaN, so that a scaler skips the step; other heads have their gradients; the method remembers nothing of it."""
    network, plain = build("perceptron"), build("perceptron")
    surgery = aggregator(method, **({"order": "ascending"} if method == "gradvac" else {}))

    def losses(net: Network, seed: int) -> dict[str, Tensor]:
        return {task: loss.square() + 1 for task, loss in net.losses(seed).items()}  # MoCo takes positive ones

    surgery.backward(losses(network, 0), **options)
    memory = {name: tensor.clone() for name, tensor in surgery.named_buffers()}
    network.zero_grad()
    broken = losses(network, 1)
    surgery.backward({**broken, "b": broken["b"] * value}, **options)
    for name, g in grads(network).items():
        if name.startswith("trunk"):
            assert g.isnan().all(), name
    for name, g in oracle.separate(plain, lambda: losses(plain, 1))["a"].items():
        if name.startswith("heads"):
            assert torch.equal(network.get_parameter(name).grad, g), name  # type: ignore[arg-type]
    assert torch.isfinite(network.heads["c"].weight.grad).all()  # type: ignore[index]
    assert not torch.isfinite(network.heads["b"].weight.grad).any()  # type: ignore[index]
    for name, tensor in surgery.named_buffers():
        if name != "key":
            assert torch.equal(tensor, memory[name]), name
