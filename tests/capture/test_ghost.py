"""Products of gradients that are never formed, against those of formed ones; which layers they are known of; what they save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, save_on_cpu
from torch.nn.functional import conv2d, conv_transpose2d
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradsurgery.capture import ghost
from gradsurgery.capture.ghost import Ghost, ghosts_in
from gradsurgery.capture.graph import Graph

EVERY_LAYER = -(2**60)
EXACT = 1e-13  # of |g_i| |g_j|


def graph_of(losses: list[Tensor]) -> Graph:
    edges = [get_gradient_edge(loss) for loss in losses]
    return Graph([[(edge.node, edge.output_nr)] for edge in edges])


def found(losses: list[Tensor], weights: list[Tensor]) -> list[Ghost]:
    return list(ghosts_in(graph_of(losses), {id(weight): weight for weight in weights}).values())


def losses_of(output: Tensor, tasks: int) -> list[Tensor]:
    """Of directions that have a part in common, so that products are neither zero nor one."""
    generator = torch.Generator().manual_seed(3)
    shapes = (tasks + 1, *output.shape)
    common, *own = torch.randn(shapes, generator=generator, dtype=torch.float64).to(output)
    return [(output * (common + direction)).sum() for direction in own]


def filled(layer: Ghost, losses: list[Tensor]) -> Ghost:
    for t, loss in enumerate(losses):
        (layer.arrived[t],) = torch.autograd.grad(loss, [torch.autograd.graph.GradientEdge(*layer.edge)], retain_graph=True)
    return layer


class OneNumber(nn.Module):
    """Torch takes lists of one entry for as many axes as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, padding=(1,), stride=(2,))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "linear of sequences": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "linear of sequences, without bias": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 4, 5)),
    "convolution, strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (2, 3, 6, 5)),
    "convolution of one place": (lambda: nn.Conv2d(3, 4, 1, bias=False), (2, 3, 2, 2)),
    "convolution of one image": (lambda: nn.Conv2d(3, 4, 3), (3, 4, 5)),
    "convolution, padded to the same size": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 4, 5)),
    "convolution, one number for both axes": (OneNumber, (2, 3, 5, 6)),
    "convolution over time": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (2, 3, 7)),
    "convolution, channels last": (lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (2, 3, 4, 5)),
}


@pytest.mark.parametrize("absent", [None, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_products_and_combination_are_those_of_formed_gradients(
    kind: str, absent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    torch.manual_seed(0)
    layer = LAYERS[kind][0]().double()
    x = torch.randn(LAYERS[kind][1], dtype=torch.float64)
    losses = losses_of(layer(x.to(memory_format=torch.channels_last) if "last" in kind else x), 3)
    (one,) = found(losses, [layer.weight])
    formed = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses]
    filled(one, losses)
    if absent is not None:
        del one.arrived[absent]
        formed[absent] = torch.zeros_like(formed[absent])
    G = torch.stack(formed).flatten(1)
    K, norms = G @ G.T, G.norm(dim=1)
    assert ((one.gram(3) - K).abs() <= EXACT * torch.outer(norms, norms)).all()
    assert torch.equal(one.gram(3), one.gram(3).T)
    w = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    arriving = sum((w[t] * d for t, d in one.arrived.items()), start=torch.zeros(()))
    assert isinstance(arriving, Tensor)
    torch.testing.assert_close(one.gradient(arriving), torch.tensordot(w, torch.stack(formed), 1), rtol=1e-12, atol=1e-13)


def test_a_weight_that_is_multiplied_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    W = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    losses = losses_of(torch.randn(3, 5, dtype=torch.float64) @ W, 2)
    (one,) = found(losses, [W])
    G = torch.stack([torch.autograd.grad(loss, W, retain_graph=True)[0] for loss in losses])
    torch.testing.assert_close(filled(one, losses).gram(2), G.flatten(1) @ G.flatten(1).T, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(one.gradient(one.arrived[0]), G[0], rtol=1e-12, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    positions=st.integers(1, 9),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    tasks=st.integers(2, 5),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    mean=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_products_of_float32_are_those_of_gradients_that_were_never_rounded(
    positions: int, inputs: int, outputs: int, tasks: int, scale: float, mean: float, seed: int
) -> None:
    """Where what arrives adds up to nothing and the inputs have a mean, formed gradients have lost it to rounding."""
    generator = torch.Generator().manual_seed(seed)
    X = (mean + torch.randn(positions, inputs, generator=generator)) * scale
    D = torch.randn(tasks, positions, outputs, generator=generator)
    D -= D.mean(1, keepdim=True)
    one = ghost.Dense(torch.empty(outputs, inputs), (None, 0), X, dict(enumerate(D)))
    G = (D.double().mT @ X.double()).flatten(1)
    bound = float(X.double().norm()) ** 2 * torch.outer(*[D.double().flatten(1).norm(dim=1)] * 2)
    assert ((one.gram(tasks) - G @ G.T).abs() <= 16 * torch.finfo(torch.float64).eps * bound).all()


def test_tasks_that_depend_on_each_other_are_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """K of a, b and a + b has no more rank than that of a and b, to float64's rounding of it."""
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    layer = nn.Linear(64, 32)
    first, second = losses_of(layer(torch.randn(8, 64)), 2)
    losses = [first, second, first + second]
    (one,) = found(losses, [layer.weight])
    filled(one, losses)
    D = one.arrived = {t: arrived / 3 for t, arrived in one.arrived.items()}  # that are no short numbers
    D[2] = D[0] + D[1]
    K = one.gram(3)
    off = D[0].double() + D[1].double() - D[2].double()  # to float32's rounding of what arrives, and no more
    u = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert float(u @ K @ u) <= float(off.norm() * one.given.norm()) ** 2 + 1e-13 * float(K.trace())
    assert float(off.norm()) > 0
    assert float(torch.linalg.eigvalsh(K)[0]) >= -1e-14 * float(K.trace())


@settings(max_examples=40, deadline=None)
@given(positions=st.integers(1, 9), inputs=st.integers(1, 12), outputs=st.integers(1, 12), tasks=st.integers(2, 5))
def test_multiplications_are_counted_as_torch_counts_them(positions: int, inputs: int, outputs: int, tasks: int) -> None:
    X, D = torch.randn(positions, inputs), torch.randn(tasks, positions, outputs)
    one = ghost.Dense(torch.empty(outputs, inputs), (None, 0), X, dict(enumerate(D)))
    with FlopCounterMode(display=False) as taken:
        one.gram(tasks)
        one.gradient(D[0])
    with FlopCounterMode(display=False) as formed:
        for t in range(tasks):
            D[t].mT @ X
    with FlopCounterMode(display=False) as last:
        one.gradient(D[0])
    doubles = taken.get_total_flops() - last.get_total_flops()
    assert formed.get_total_flops() - taken.get_total_flops() - doubles == 2 * ghost.saved(tasks, positions, inputs, outputs)


def test_layers_that_have_it_by_default() -> None:
    """The last stage of a ResNet at a small batch of small images, and no stage before it; a wide layer at a small batch."""
    assert ghost.saved(3, 16 * 3 * 3, 512 * 9, 512) >= ghost.LEAST
    assert ghost.saved(3, 16 * 12 * 12, 128 * 9, 128) < ghost.LEAST
    wide, narrow = nn.Linear(512, 512), nn.Linear(512, 16)
    (one,) = found(losses_of(narrow(wide(torch.randn(8, 512))), 3), [wide.weight, narrow.weight])
    assert one.leaf is wide.weight
    assert not found(losses_of(wide(torch.randn(300, 512)), 3), [wide.weight])


def hooked() -> tuple[Tensor, list[Tensor]]:
    layer = nn.Linear(5, 4)
    layer.weight.register_hook(lambda g: 2 * g)
    return layer(torch.randn(3, 5)), [layer.weight]


def tied() -> tuple[Tensor, list[Tensor]]:
    layer = nn.Linear(5, 5)
    return layer(layer(torch.randn(3, 5))), [layer.weight]


def of(layer: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    weights = [p for p in layer.parameters() if p.dim() > 1]
    return layer(torch.randn(shape, dtype=dtype)), weights


def within(context: Any) -> tuple[Tensor, list[Tensor]]:
    layer = nn.Linear(5, 4)
    with context:
        return layer(torch.randn(3, 5)), [layer.weight]


def recomputed() -> tuple[Tensor, list[Tensor]]:
    layer = nn.Linear(5, 4)
    return checkpoint(layer, torch.randn(3, 5), use_reentrant=False), [layer.weight]


def scaled_product() -> tuple[Tensor, list[Tensor]]:
    W = torch.randn(5, 4, requires_grad=True)
    return torch.addmm(torch.randn(4), torch.randn(3, 5), W, alpha=2), [W]


def on_the_left() -> tuple[Tensor, list[Tensor]]:
    W = torch.randn(5, 4, requires_grad=True)
    return W @ torch.randn(4, 3), [W]


def as_the_image() -> tuple[Tensor, list[Tensor]]:
    W = torch.randn(2, 3, 5, 5, requires_grad=True)
    return conv2d(W, torch.randn(4, 3, 3, 3)), [W]


def kernel_turned() -> tuple[Tensor, list[Tensor]]:
    W = torch.randn(3, 4, 3, 3, requires_grad=True)
    return conv_transpose2d(torch.randn(2, 3, 5, 5), W), [W]


def embedded() -> tuple[Tensor, list[Tensor]]:
    table = nn.Embedding(5, 4)
    return table(torch.tensor([1, 2])), [table.weight]


def biased(bias: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
    W = torch.randn(4, 3, 2, 2, requires_grad=True)
    return conv2d(torch.randn(2, 3, 5, 5), W, bias(torch.randn(4, requires_grad=True))), [W]


def watched(bias: Tensor) -> Tensor:
    bias.register_hook(lambda g: 2 * g)
    return bias


FORMED: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
    "a hook watches its gradient": hooked,
    "a weight that is used twice": tied,
    "groups of channels": lambda: of(nn.Conv2d(4, 4, 3, groups=2), 2, 4, 5, 5),
    "a kernel that is turned": kernel_turned,
    "three axes": lambda: of(nn.Conv3d(2, 3, 2), 2, 2, 3, 3, 3),
    "a parametrized weight": lambda: of(weight_norm(nn.Linear(5, 4)), 3, 5),
    "half precision": lambda: of(nn.Linear(5, 4).bfloat16(), 3, 5, dtype=torch.bfloat16),
    "autocast": lambda: within(torch.autocast("cpu", torch.bfloat16)),
    "offloaded activations": lambda: within(save_on_cpu()),
    "a checkpoint": recomputed,
    "a product that is multiplied": scaled_product,
    "a weight on the left": on_the_left,
    "a weight that is convolved": as_the_image,
    "an embedding": embedded,
    "a convolution whose bias was computed": lambda: biased(torch.exp),
    "a convolution with a hook on its bias": lambda: biased(watched),
}


@pytest.mark.parametrize("kind", FORMED)
def test_layers_whose_gradients_are_formed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    output, weights = FORMED[kind]()
    assert weights
    assert not found(losses_of(output.float(), 2), weights)


@pytest.mark.parametrize("bias", [None, "frozen", "not wanted", "shared by two"])
def test_biases_of_convolutions(bias: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd computes the weight's gradient with the bias's: that one is taken from what arrives, or the weight's is formed."""
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    W, b = torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(4, requires_grad=bias != "frozen")
    y = conv2d(torch.randn(2, 3, 5, 5), W, b)
    losses = losses_of(y * b[:, None, None] if bias == "shared by two" else y, 2)
    edges = [get_gradient_edge(loss) for loss in losses]
    graph = Graph([[(edge.node, edge.output_nr)] for edge in edges], [id(W)] if bias == "not wanted" else None)
    found = ghosts_in(graph, {id(W): W})
    assert [one.bias for one in found.values()] == ([] if bias == "shared by two" else [b if bias is None else None])


def test_a_loss_that_is_a_weight_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is not that of the layer alone."""
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    W = torch.randn(1, 1, requires_grad=True)
    y = torch.randn(3, 1) @ W
    assert found([y.sum(), y.square().sum()], [W])
    assert not found([y.sum(), W], [W])
    assert not found([y.sum(), (torch.randn(3, 1) @ W.t()).sum()], [W])


@given(positions=st.integers(1, 4096), inputs=st.integers(1, 4096), outputs=st.integers(1, 4096), tasks=st.integers(1, 16))
def test_no_layer_that_pays_is_passed_over(positions: int, inputs: int, outputs: int, tasks: int) -> None:
    if ghost.saved(tasks, positions, inputs, outputs) >= ghost.LEAST:
        assert ghost._may_pay(tasks, inputs * outputs)


def test_only_shared_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    layer = nn.Linear(5, 4)
    losses = losses_of(layer(torch.randn(3, 5)), 2)
    assert not found(losses, [])
    assert found(losses, [layer.weight])


def test_a_layer_input_that_was_changed_in_place_is_refused_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    losses = losses_of(layer(x), 2)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found(losses, [layer.weight])
