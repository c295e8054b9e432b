"""Steps in which some layers' gradients are never formed: the same .grad, weights and statistics as where all are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from oracles import parameters as oracle
from parameters.comparison import aggregator, ascending, assert_gradients, grads
from parameters.models import TASKS, ZOO, Network, build
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery.capture import ghost, passes

EVERY_LAYER, NO_LAYER = -(2**60), 2**60
WAYS: dict[str, dict[str, Any]] = {"full": {}, "low": {"memory": "low"}}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a layer's gradient need not be formed, it is not, whether that pays or not."""
    monkeypatch.setattr(ghost, "LEAST", EVERY_LAYER)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ZOO)
def test_equals_separate_backward_passes(kind: str, way: str) -> None:
    network, plain = build(kind), build(kind)
    surgery = aggregator()
    surgery.backward(network.losses(), **WAYS[way])
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-12)


class Wide(Network):
    """Where it pays by itself: a convolution over few places, and a wide dense layer; 16 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 192, 3, padding=1, bias=False), nn.BatchNorm2d(192), nn.ReLU()),
            *(nn.Conv2d(192, 192, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Linear(768, 256), nn.Tanh()),
        )
        self.heads = nn.ModuleDict({task: nn.Linear(256, 2) for task in TASKS})

    def forward(self) -> dict[str, Tensor]:
        z = self.trunk(self.draw(16, 3, 4, 4))
        return self.each({task: head(z) for task, head in self.heads.items()})


LAYERS = ("trunk.5.weight", "trunk.8.weight")  # those of 192 x 192 and of 256 x 768; the other convolutions are too small


def wide(dtype: torch.dtype = torch.float64) -> Wide:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Wide().to(dtype)


class Formed(TorchDispatchMode):
    """Counts the products and convolutions whose result is as large as one of a network's weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.sizes = {p.numel(): name for name, p in network.named_parameters()}
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.convolution_backward):
            for made in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(made, Tensor) and made.numel() in self.sizes:
                    self.found[self.sizes[made.numel()]] += 1
        return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("way", [*WAYS, "gram_on"])
def test_one_gradient_of_a_layer_is_formed_instead_of_one_a_task(
    way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    weights = {}
    for name, worth in (("ghosts", ghost.LEAST), ("formed", NO_LAYER)):
        monkeypatch.setattr(ghost, "LEAST", worth)
        network, surgery = wide(dtype), aggregator()
        options = {"gram_on": network.trunk[8]} if way == "gram_on" else WAYS[way]
        losses = network.losses()
        with Formed(network) as counter:
            surgery.backward(losses, shared=network.trunk, **options)
        formed = [counter.found[layer] for layer in LAYERS]
        if name == "ghosts":
            assert formed == [1, 1]
        else:  # each task's, and what the weighted pass brings; of what gram_on= leaves to that pass, no task's
            least = {"full": [3, 3], "low": [4, 4], "gram_on": [1, 3]}[way]
            assert all(count >= wanted for count, wanted in zip(formed, least, strict=True)), formed
        assert surgery.weights is not None
        found[name], weights[name] = grads(network), surgery.weights
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(weights["ghosts"], weights["formed"], rtol=tolerance, atol=tolerance)
    for name, g in found["formed"].items():
        assert float((found["ghosts"][name] - g).norm()) <= tolerance * float(g.norm()), name


def mlp(layers: int, width: int) -> tuple[nn.Sequential, nn.ModuleList]:
    trunk = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.Tanh())))
    return trunk, nn.ModuleList(nn.Linear(width, 2) for _ in TASKS)


@pytest.mark.parametrize(("samples", "formed"), [(16, 1), (100, 4)])
def test_low_forms_gradients_where_what_arrives_would_take_as_much(samples: int, formed: int) -> None:
    """Of 512 x 512 entries what arrives for 100 samples is a fifth; in full it stands for the gradients, in low it may not."""
    for way, expected in (("full", 1), ("low", formed)):
        trunk, heads = mlp(1, 512)
        z = trunk(torch.randn(samples, 512))
        losses = [head(z).square().mean() for head in heads]
        with Formed(trunk) as counter:
            aggregator().backward(losses, shared=trunk, **WAYS[way])
        assert counter.found["0.weight"] == expected, way


def test_no_pass_is_made_again_for_what_is_left_beside_ghosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The biases of wide layers are small, although nothing else is kept: each task runs through the heads once, and the trunk."""
    trunk, heads = mlp(12, 256)
    z = trunk(torch.randn(16, 256))
    losses = [head(z).square().mean() for head in heads]
    runs: list[int] = []
    run = passes._run

    def counted(*args: Any, **options: Any) -> Any:
        runs.append(1)
        return run(*args, **options)

    monkeypatch.setattr(passes, "_run", counted)
    with Formed(trunk) as counter:
        aggregator().backward(losses, shared=trunk)
    assert set(counter.found.values()) == {12}  # all weights are of one size
    assert len(runs) == 2 * len(TASKS)


def test_float32_is_as_exact_as_where_all_gradients_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both K are off by what float32 activations cost, and from each other by less than float32 shows."""
    exact, found = aggregator(), {}
    exact.backward(wide().losses())
    for name, least in (("ghosts", ghost.LEAST), ("formed", NO_LAYER)):
        monkeypatch.setattr(ghost, "LEAST", least)
        surgery = aggregator()
        surgery.backward(wide(torch.float32).losses())
        found[name] = surgery.statistics().gram
    K = exact.statistics().gram
    norms = torch.outer(K.diagonal().sqrt(), K.diagonal().sqrt())
    apart = {name: float(((gram - K) / norms).abs().max()) for name, gram in found.items()}
    assert not torch.equal(found["ghosts"], found["formed"])
    assert float(((found["ghosts"] - found["formed"]) / norms).abs().max()) <= torch.finfo(torch.float32).eps
    assert apart["ghosts"] <= 2 * apart["formed"] + torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("everywhere")
def test_a_hook_on_a_layers_output_is_applied_once_a_task() -> None:
    """A map that is not linear, between two layers whose gradients are not formed, and on one's own output."""

    def squashed(g: Tensor) -> Tensor:
        return 3 * g / (0.05 + g.abs())

    def losses(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        first = network.trunk[0](network.draw(7, 4))
        first.register_hook(squashed)
        second = network.trunk[2](torch.tanh(first))
        second.register_hook(squashed)
        return network.each({task: head(torch.tanh(second)) for task, head in network.heads.items()})  # type: ignore[no-any-return]

    network, plain = build("perceptron"), build("perceptron")
    aggregator().backward(losses(network))
    rows = oracle.separate(plain, lambda: losses(plain))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.usefixtures("everywhere")
def test_hooks_on_a_layers_own_node() -> None:
    """What is changed before it counts for its weight, too; after it there is no gradient of the weight to be seen."""
    seen: list[tuple[Tensor | None, ...]] = []

    def losses(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        first = network.trunk[0](network.draw(7, 4))
        second = network.trunk[2](torch.tanh(first))
        second.grad_fn.register_prehook(lambda arriving: (3 * arriving[0] / (0.05 + arriving[0].abs()),))
        second.grad_fn.register_hook(lambda sent, arrived: seen.append(sent))
        return network.each({task: head(torch.tanh(second)) for task, head in network.heads.items()})  # type: ignore[no-any-return]

    network, plain = build("perceptron"), build("perceptron")
    aggregator().backward(losses(network))
    assert len(seen) >= 3
    assert all(sent[2] is None for sent in seen)
    rows = oracle.separate(plain, lambda: losses(plain))
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_arrive_expanded(way: str) -> None:
    """A sum hands one number to all; another task's gradient has numbers of its own."""
    generator = torch.Generator().manual_seed(2)
    images, kernel, direction = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 4, 4), (4, 3, 2, 2), (2, 4, 3, 3))
    )
    W = nn.Parameter(kernel)

    def losses() -> dict[str, Tensor]:
        y = nn.functional.conv2d(images, W)
        return {"a": y.sum(), "b": -y.sum(), "c": (y * direction).sum()}

    G = torch.stack([torch.autograd.grad(loss, W, retain_graph=True)[0] for loss in losses().values()]).flatten(1)
    surgery = aggregator()
    surgery.backward(losses(), shared=[W], **WAYS[way])
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-12, atol=1e-12)
    assert W.grad is not None
    torch.testing.assert_close(W.grad, ascending(G).view_as(W), rtol=1e-11, atol=1e-11)


def test_a_hook_on_a_weight_is_applied_once_a_task() -> None:
    network, plain = wide(), wide()
    for one in (network, plain):
        one.trunk[5].weight.register_hook(lambda g: g.abs())
    aggregator().backward(network.losses())
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_a_graph_that_is_kept_gives_the_same_again_and_one_that_is_used_up_is_refused() -> None:
    network = wide()
    losses = network.losses()
    aggregator().backward(losses, retain_graph=True)
    first = grads(network)
    network.zero_grad()
    aggregator().backward(losses)
    for name, g in grads(network).items():
        assert torch.equal(g, first[name]), name
    before = grads(network)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        aggregator().backward(losses)
    for name, g in grads(network).items():
        assert torch.equal(g, before[name]), name


def test_gradients_are_laid_out_as_their_weights() -> None:
    network = wide()
    network.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = wide()
    for _ in range(2):
        aggregator().backward(network.losses())
        aggregator().backward(plain.losses())
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.stride() == p.stride()
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def test_a_gradient_that_is_not_finite_makes_the_shared_ones_so_and_no_other_head() -> None:
    network = wide()
    losses = network.losses()
    losses["b"] = losses["b"] * float("inf")
    aggregator().backward(losses, shared=network.trunk)
    assert all(bool(p.grad.isnan().all()) for p in network.trunk.parameters() if p.grad is not None)
    assert all(bool(p.grad.isfinite().all()) for task in ("a", "c") for p in network.heads[task].parameters() if p.grad is not None)


@pytest.mark.usefixtures("everywhere")
def test_gradients_that_arrive_sparse() -> None:
    layer, x, places = nn.Linear(5, 4, bias=False).double(), torch.randn(3, 5, dtype=torch.float64), torch.tensor([[1], [3], [1]])
    seen: list[bool] = []

    def losses() -> list[Tensor]:
        y, z = layer(x), layer.weight.new_ones(3, 1)
        y.register_hook(lambda g: seen.append(g.is_sparse))
        return [(torch.gather(y, 1, places, sparse_grad=True) * z).sum(), -y.square().sum()]

    G = torch.stack([torch.autograd.grad(loss, layer.weight)[0] for loss in (losses()[0], losses()[1])]).flatten(1)
    seen.clear()
    surgery = aggregator(tasks=2)
    surgery.backward(losses())
    assert True in seen
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-12, atol=1e-12)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, ascending(G).view_as(layer.weight), rtol=1e-11, atol=1e-11)


class Gate(torch.autograd.Function):
    """Lets nothing through, and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shut", [1, 3])
def test_layers_that_nothing_arrives_at(shut: int, way: str) -> None:
    """One task of three is let through, or none; another layer is reached by all."""
    network, plain = build("perceptron"), build("perceptron")

    def losses(one: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        z = one.trunk[0](one.draw(7, 4))
        gates = [Gate.apply if k < shut else torch.clone for k in range(3)]
        last = [one.trunk[2](torch.tanh(z))] * 3
        return one.each(  # type: ignore[no-any-return]
            {task: head(gate(y) + z[:, :5]) for (task, head), gate, y in zip(one.heads.items(), gates, last, strict=True)}
        )

    aggregator().backward(losses(network), **WAYS[way])
    rows = oracle.separate(plain, lambda: losses(plain))
    assert "trunk.2.weight" not in rows["a"]
    assert_gradients(network, oracle.gradients(rows, plain, ascending, [n for n in rows["c"] if n.startswith("trunk")]), rows)


def test_the_default_device_changes_nothing() -> None:
    network, plain = wide(), wide()
    losses = network.losses()
    aggregator().backward(plain.losses())
    with torch.device("meta"):
        aggregator().backward(losses)
    for name, g in grads(plain).items():
        assert torch.equal(grads(network)[name], g), name


def test_within_autocast_nothing_of_it_is_rounded() -> None:
    """As the backward pass of layers in float32 should not be, wherever it is called from."""
    layer, plain = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(8, 512)

    def losses(one: nn.Module) -> list[Tensor]:
        y = one(x)
        return [y[:, 0].square().sum(), (y[:, 1] * x[:, 2]).sum()]

    first, second = losses(layer), losses(plain)
    aggregator(tasks=2).backward(second)
    with torch.autocast("cpu", torch.bfloat16):
        aggregator(tasks=2).backward(first)
    assert layer.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("scale", [2.0**12, 1000.0])
def test_scaled_losses(scale: float) -> None:
    network, plain = wide(), wide()
    surgery = aggregator()
    surgery.backward(network.losses(), scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows, factor=scale)
    G = oracle.matrix(rows, oracle.shared_names(rows, plain), TASKS)
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("left_out", ["trunk.5.bias", "trunk.5.weight"])
def test_weights_or_biases_that_are_not_wanted(left_out: str) -> None:
    network, plain = wide(), wide()
    named = dict(network.named_parameters())
    wanted = [p for name, p in named.items() if name != left_out]
    shared = [p for p in wanted if any(p is q for q in network.trunk.parameters())]
    aggregator().backward(network.losses(), shared=shared, inputs=wanted)
    dict(plain.named_parameters())[left_out].requires_grad_(False)
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ascending), rows)


def test_a_bias_that_is_not_operated_on_gets_the_sum() -> None:
    network, plain = wide(), wide()
    weights = [p for p in network.trunk.parameters() if p.dim() > 1]
    aggregator().backward(network.losses(), shared=weights)
    rows = oracle.separate(plain, plain.losses)
    names = [name for name, p in plain.trunk.named_parameters(prefix="trunk") if p.dim() > 1]
    assert_gradients(network, oracle.gradients(rows, plain, ascending, names), rows)


def test_a_hook_on_a_layers_output_sees_one_gradient_a_task() -> None:
    network = wide()
    seen: list[Tensor] = []
    handle = network.trunk[5].register_forward_hook(lambda module, inputs, output: output.register_hook(seen.append) and None)
    aggregator().backward(network.losses())
    handle.remove()
    assert len(seen) == 3


def test_absent_tasks() -> None:
    network, plain = wide(), wide()
    losses = network.losses()
    aggregator().backward({"a": losses["a"], "b": None, "c": losses["c"]}, shared=network.trunk)
    rows = oracle.separate(plain, lambda: {task: loss for task, loss in plain.losses().items() if task != "b"})
    expected = oracle.gradients(rows, plain, ascending)
    assert not any(name.startswith("heads.b") for name in expected)
    assert_gradients(network, expected, rows)
