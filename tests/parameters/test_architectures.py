"""Surgery in parameter space equals T separate backward passes and the paper's algorithm, on every kind of network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from parameters.comparison import (
    aggregator,
    ascending,
    assert_gradients,
    assert_same_gradients,
    dense,
    grads,
    untouched,
)
from parameters.models import TASKS, ZOO, Network, Perceptron, build
from tolerances import TOLERANCES
from torch import Tensor

# Where the tasks part at features that none of the shared parameters lies beyond, one batched pass can take all of them through.
PARTING = [
    *("perceptron", "convolutions", "transformer", "embedding", "sparse-head", "unet"),
    *("dropout", "overlapping-heads", "learned-variance", "partly-frozen", "parametrized", "custom-function"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ZOO)
def test_equals_separate_backward_passes(kind: str, dtype: torch.dtype) -> None:
    network, plain = build(kind, dtype), build(kind, dtype)
    surgery = aggregator()
    losses = network.losses()
    surgery.backward(losses)
    rows = oracle.separate(plain, plain.losses)
    assert oracle.conflicts(rows, plain) > 0, "the test needs a conflict to mean anything"
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
    assert surgery.statistics().conflicts == oracle.conflicts(rows, plain)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ZOO)
def test_a_parameter_of_one_task_gets_exactly_its_gradient(kind: str) -> None:
    """To the bit, and in the layout that its optimizer knows."""
    network, plain = build(kind, torch.float32), build(kind, torch.float32)
    aggregator().backward(network.losses())
    alone = 0
    for task in TASKS:
        plain.zero_grad()
        plain.losses()[task].backward()
        others = [p for other in TASKS if other != task for p in reached_by(plain, other)]
        for (name, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
            if q.grad is not None and all(q is not other for other in others):
                alone += 1
                assert p.grad is not None, name
                assert p.grad.layout == q.grad.layout, name
                assert torch.equal(dense(p.grad), dense(q.grad)), name
    assert alone >= 2


def reached_by(network: Any, task: str) -> list[torch.Tensor]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(network.losses()[task], parameters, allow_unused=True)
    return [p for p, g in zip(parameters, found, strict=True) if g is not None]


@pytest.mark.parametrize("kind", ZOO)
def test_less_memory_for_the_same_gradients(kind: str) -> None:
    network, plain = build(kind), build(kind)
    aggregator().backward(network.losses(), memory="low")
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("kind", PARTING)
def test_one_batched_pass_for_the_same_gradients(kind: str) -> None:
    network, plain = build(kind), build(kind)
    surgery = aggregator()
    surgery.backward(network.losses(), passes="batched")
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("kind", [kind for kind in ZOO if kind not in PARTING])
def test_what_cannot_be_batched_is_refused_and_nothing_written(kind: str) -> None:
    """By us where the tasks part nowhere, by torch where gradients are sparse or random numbers are drawn again."""
    network = build(kind)
    message = "vmap" if kind == "checkpointed" else "Sparse" if kind == "sparse-embedding" else "passes: .*'sequential'"
    with untouched(network), pytest.raises((ValueError, RuntimeError, NotImplementedError), match=message):
        aggregator().backward(network.losses(), passes="batched")


@pytest.mark.parametrize("kind", ZOO)
def test_one_scalar_for_loops_that_call_backward(kind: str) -> None:
    network, other = build(kind), build(kind)
    losses = network.losses()
    total = aggregator().total(losses)
    assert total.shape == ()
    torch.testing.assert_close(total.detach(), torch.stack([loss.detach() for loss in losses.values()]).sum())
    assert not grads(network), "before its backward() nothing is written"
    total.backward()
    aggregator().backward(other.losses())
    assert_same_gradients(network, other)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("task", TASKS)
def test_one_task_is_a_plain_backward_pass(kind: str, task: str) -> None:
    """To the bit, and no surgery: no random order is used up."""
    network, plain = build(kind, torch.float32), build(kind, torch.float32)
    surgery = aggregator("pcgrad", order="random", seed=3)
    state = {name: tensor.clone() for name, tensor in surgery.named_buffers()}
    for seed in range(2):  # the second is added to the first
        surgery.backward({task: network.losses(seed)[task]})
        plain.losses(seed)[task].backward()
    assert_same_gradients(network, plain)
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        assert p.grad is None or p.grad.layout == q.grad.layout  # type: ignore[union-attr]
    assert [sum(step.present) for step in surgery.history] == [1, 1]
    assert all(torch.equal(tensor, state[name]) for name, tensor in surgery.named_buffers())


# --- dtypes and layouts -----------------------------------------------------------------------------------------------------------


class TwoPrecisions(Perceptron):
    """The trunk's second half in another dtype than the first."""

    def forward(self) -> dict[str, Tensor]:
        y = self.trunk[:2](self.draw(7, 4))
        z = self.trunk[2:](y.to(self.trunk[2].weight.dtype)).to(self.heads["a"].weight.dtype)
        return self.each({task: head(z) for task, head in self.heads.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_shared_parameters_of_two_dtypes(dtype: torch.dtype, options: dict[str, Any]) -> None:
    def built() -> TwoPrecisions:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            network = TwoPrecisions().double()
            network.trunk[2].to(dtype)
            return network

    network, plain = built(), built()
    aggregator().backward(network.losses(), **options)
    rows = oracle.separate(plain, plain.losses)
    expected = oracle.gradients(rows, plain, ascending)
    if options.get("memory") != "low":
        assert_gradients(network, expected, rows)
    for name, p in network.named_parameters():
        # The weighted pass rounds a sum on its way through the trunk, where separate ones round each task's gradient.
        size = sum(float(row[name].abs().max()) for row in rows.values() if name in row)
        torch.testing.assert_close(p.grad, expected[name].to(p.dtype), rtol=0, atol=8 * TOLERANCES[dtype].rounding * size)


@pytest.mark.parametrize("kind", ["perceptron", "unet", "transformer"])
def test_autocast(kind: str) -> None:
    """bfloat16 inside; .grad in the parameters' dtype, and the decision on what arrives there."""
    network, plain = build(kind, torch.float32), build(kind, torch.float32)

    def forward(net: Network) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.losses()

    aggregator().backward(forward(network))
    rows = oracle.separate(plain, lambda: forward(plain))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"passes": "batched"}], ids=["full", "low", "batched"])
def test_gradients_are_laid_out_like_parameters(options: dict[str, Any]) -> None:
    """As by a plain backward pass, so that optimizers take their fast paths."""
    network, plain = build("unet"), build("unet")
    for net in (network, plain):
        net.to(memory_format=torch.channels_last)
    aggregator().backward(network.losses(), **options)
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
    assert any(not p.is_contiguous() for p in network.parameters())
    for name, p in network.named_parameters():
        assert p.grad is not None
        assert p.grad.stride() == p.stride(), name
