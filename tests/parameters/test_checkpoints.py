"""How often a block under activation checkpointing is recomputed: once by each pass that has to go through it, and not once a part.

T tasks are T passes. The weighted pass of ``memory="low"`` is one more through all blocks that are shared; that of ``gram_on=`` the
only one through those that lie beyond what is measured.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from oracles import parameters as oracle
from oracles.full_vectors import ORACLES
from parameters.comparison import assert_gradients, grads
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.capture import checkpoints
from gradsurgery.capture.graph import Graph, edges_of
from gradsurgery.one_pass import PARTS

WIDTH = 6


class Block(nn.Module):
    """Two layers and a connection over one of them: the graph could be cut between the layers."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.up(x).tanh()
        return (z + self.down(z).sin()).tanh()


class Counted(nn.Module):
    """T tasks, and how often each part ran."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.large = nn.Linear(WIDTH, 8 * WIDTH)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)) for _ in range(tasks))

    def counted(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            self.runs[name] += 1
            return run(*args)

        return counting

    def kept(self, name: str, run: Callable[..., Any], *args: Any) -> Any:
        """Checkpointed, and counted."""
        return checkpoint(self.counted(name, run), *args, use_reentrant=False)

    def batch(self) -> Tensor:
        return torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def through(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = block(z)
        return z

    def objectives(self, z: Tensor) -> list[Tensor]:
        return [self.objective(t, head(z)) for t, head in enumerate(self.heads)]

    def objective(self, t: int, y: Tensor) -> Tensor:
        return [(y - 1).square().mean() * 3, (y + 1).abs().mean(), -y.square().mean() - y.mean()][t]

    def losses(self) -> dict[str, Tensor]:
        return dict(zip("abc", self.forward(self.batch()), strict=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError


class Whole(Counted):
    """The trunk is one block."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.objectives(self.kept("trunk", lambda x: self.through(self.first(x)), x))


class Row(Counted):
    """Block after block."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.first(x)
        for k, block in enumerate(self.blocks):
            z = self.kept(f"block {k}", block, z)
        return self.objectives(z)


class LargeAbove(Counted):
    """A large parameter between the losses and the block."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.kept("trunk", self.through, self.first(x))
        return self.objectives(self.large(z).tanh().unflatten(1, (8, WIDTH)).mean(1))


class LargeInside(Counted):
    """The same parameter in the block."""

    def forward(self, x: Tensor) -> list[Tensor]:
        def last(z: Tensor) -> Tensor:
            z = self.large(self.blocks[3](z)).tanh()
            return z.unflatten(1, (8, WIDTH)).mean(1).tanh()

        return self.objectives(self.kept("trunk", last, self.first(x)))


class LargeBelow(Counted):
    """The same parameter below a block with small ones."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.large(self.first(x)).tanh().unflatten(1, (8, WIDTH)).mean(1)
        return self.objectives(self.kept("trunk", lambda z: z.sin().tanh(), z))


class Nested(Counted):
    """A block in another: whatever the inner one saved, the outer one is recomputed for, and runs the inner one, too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        def outer(z: Tensor) -> Tensor:
            z = self.kept("inner", self.blocks[1], self.blocks[0](z))
            return self.blocks[2](z)

        return self.objectives(self.kept("outer", outer, self.first(x)))


class NestedAlone(Counted):
    """The outer blocks save nothing themselves but the inner one's arguments."""

    def forward(self, x: Tensor) -> list[Tensor]:
        def outer(z: Tensor) -> Tensor:
            z = self.kept("inner 0", self.blocks[0], z + 1)
            return self.kept("inner 1", self.blocks[1], z)

        return self.objectives(self.kept("outer", outer, self.first(x)))


class Heads(Counted):
    """Checkpointed heads, and a block below."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.kept("trunk", self.through, self.first(x))
        outputs = [self.kept(f"head {t}", head, z) for t, head in enumerate(self.heads)]
        return [self.objective(t, y) for t, y in enumerate(outputs)]


class Spanning(Counted):
    """One block from the input to all losses."""

    def forward(self, x: Tensor) -> list[Tensor]:
        losses: list[Tensor] = self.kept("all", lambda x: self.objectives(self.through(self.first(x))), x)
        return losses


class Skipped(Counted):
    """Two blocks under one connection: the graph can be cut nowhere between them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        z = self.kept("low", self.blocks[0], self.kept("high", self.blocks[1], y))
        return self.objectives(self.blocks[2](torch.cat([y, z], 0)))


PER_PASS: dict[type[Counted], dict[str, int]] = {
    Whole: {"trunk": 1},
    Row: {f"block {k}": 1 for k in range(4)},
    LargeAbove: {"trunk": 1},
    LargeInside: {"trunk": 1},
    LargeBelow: {"trunk": 1},
    Nested: {"outer": 1, "inner": 2},
    NestedAlone: {"outer": 1, "inner 0": 2, "inner 1": 1},  # torch stops once it has the last inner block's arguments
    Heads: {"trunk": 1},
    Spanning: {"all": 1},
}
"""How often a backward pass through everything runs each block that the tasks share."""

KINDS = list(PER_PASS)


def built(kind: type[Counted], tasks: int) -> Counted:
    torch.manual_seed(0)
    return kind(tasks).double()


def recomputed(network: Counted, step: Callable[[dict[str, Tensor]], object]) -> dict[str, int]:
    """How often each block was run by a step's backward passes."""
    losses = network.losses()
    network.runs.clear()
    step(losses)
    return dict(network.runs)


def times(kind: type[Counted], tasks: int, passes: int) -> dict[str, int]:
    """The same for so many passes through the trunk, and one for each head."""
    heads = {f"head {t}": 1 for t in range(tasks)} if kind is Heads else {}
    return {name: count * passes for name, count in PER_PASS[kind].items()} | heads


def propagated(losses: dict[str, Tensor]) -> None:
    for loss in losses.values():
        loss.backward(retain_graph=True)


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_plain_backward_passes_take(kind: type[Counted], tasks: int) -> None:
    assert recomputed(built(kind, tasks), propagated) == times(kind, tasks, tasks)


@pytest.mark.parametrize("options", [{}, {"retain_graph": True}, {"memory": "low"}], ids=["full", "retained", "low"])
@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_recomputed_once_a_pass(kind: type[Counted], tasks: int, options: dict[str, Any]) -> None:
    """T times; with little memory the weighted pass is one more."""
    network, plain = built(kind, tasks), built(kind, tasks)
    surgery = gs.GradientAggregator("cagrad")
    found = recomputed(network, lambda losses: surgery.backward(losses, **options))
    assert found == times(kind, tasks, tasks + (options.get("memory") == "low"))
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["cagrad"]), rows)


Measured: TypeAlias = Callable[[Any], nn.Module]


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize(
    ("kind", "on", "once"),
    [
        (Whole, lambda n: n.first, ()),
        (Whole, lambda n: n.blocks[1], ()),
        (Whole, lambda n: n.blocks[3].down, ()),
        (Row, lambda n: n.blocks[3].down, ("block 2", "block 1", "block 0")),
        (Row, lambda n: n.blocks[1], ("block 0",)),
        (Row, lambda n: n.first, ()),
        (LargeAbove, lambda n: n.large, ("trunk",)),
        (LargeAbove, lambda n: n.blocks[3].down, ()),
        (LargeInside, lambda n: n.large, ()),
        (LargeBelow, lambda n: n.large, ()),
        (Nested, lambda n: n.blocks[2], ()),
        (Nested, lambda n: n.blocks[1], ()),
        (NestedAlone, lambda n: n.blocks[1].down, ()),
        (Heads, lambda n: n.blocks[3].down, ()),
        (Spanning, lambda n: n.blocks[3].down, ()),
    ],
)
def test_the_decision_on_some_parameters_goes_to_the_end_of_their_block(
    kind: type[Counted], on: Measured, once: tuple[str, ...], tasks: int
) -> None:
    """T passes through what lies above, and through the block itself; the weighted one goes through what lies below."""
    network, plain = built(kind, tasks), built(kind, tasks)
    surgery = gs.GradientAggregator("cagrad")
    found = recomputed(network, lambda losses: surgery.backward(losses, gram_on=on(network)))
    assert found == times(kind, tasks, tasks) | dict.fromkeys(once, 1)
    rows = oracle.separate(plain, plain.losses)
    measured = {id(p) for p in on(plain).parameters()}
    G = oracle.matrix(rows, [name for name, p in plain.named_parameters() if id(p) in measured], list(rows))
    torch.testing.assert_close(surgery.statistics().gram, G @ G.T, rtol=1e-10, atol=1e-13)
    assert_gradients(network, oracle.gradients(rows, plain, lambda g: surgery.weights @ g), rows)  # type: ignore[operator]


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_weights_and_batched_passes_go_through_a_block_once(kind: type[Counted], tasks: int) -> None:
    """Where the heads lie in the same block, each of their passes is one more."""
    network, plain = built(kind, tasks), built(kind, tasks)
    surgery = gs.GradientAggregator("cagrad", every=2)
    surgery.backward(network.losses())
    expected = times(kind, tasks, tasks + 1 if kind is Spanning else 1)
    rows = oracle.separate(plain, plain.losses)
    gradients = oracle.gradients(rows, plain, ORACLES["cagrad"])
    for options in ({}, {"passes": "batched"}):
        network.zero_grad()
        assert recomputed(network, lambda losses, options=options: surgery.backward(losses, **options)) == expected
        assert_gradients(network, gradients, rows)


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_collected_gradients(kind: type[Counted], tasks: int) -> None:
    network, plain = built(kind, tasks), built(kind, tasks)
    surgery = gs.GradientAggregator("cagrad")
    assert recomputed(network, surgery.collect) == times(kind, tasks, tasks)
    surgery.backward()
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["cagrad"]), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_diagnosis_goes_through_a_block_once_a_task(kind: type[Counted]) -> None:
    network = built(kind, 3)

    def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        found = network.losses()
        network.runs.clear()
        return found

    gs.diagnose(network, network.batch(), losses)
    assert dict(network.runs) == times(kind, 3, 3)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_get_exactly_their_gradients(kind: type[Counted], options: dict[str, Any]) -> None:
    """To the bit, in a block or not."""
    network, plain = built(kind, 3).float(), built(kind, 3).float()
    network.batch = plain.batch = lambda: Counted.batch(network).float()  # type: ignore[method-assign]
    gs.GradientAggregator("cagrad").backward(network.losses(), **options)
    for loss, head, own in zip(plain.losses().values(), plain.heads, network.heads, strict=True):
        for g, p in zip(torch.autograd.grad(loss, list(head.parameters())), own.parameters(), strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, g)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
def test_blocks_that_no_cut_lies_between(options: dict[str, Any]) -> None:
    """With little memory their parameters are taken in parts, as of any graph that cannot be cut: several passes a task."""
    network, plain = built(Skipped, 3), built(Skipped, 3)
    found = recomputed(network, lambda losses: gs.GradientAggregator("cagrad").backward(losses, **options))
    assert found == {"low": 3, "high": 3} if not options else max(found.values()) <= 3 * PARTS + 1
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["cagrad"]), rows)


# --- what is found ----------------------------------------------------------------------------------------------------------------


def graph_of(network: Counted) -> Graph:
    return Graph([edges_of([loss]) for loss in network.losses().values()])


def names_of(graph: Graph, network: nn.Module) -> list[set[str]]:
    """The parameters of each region, where the graph is cut as often as it can be."""
    names = {id(p): name for name, p in network.named_parameters()}
    return [{names[id(leaf)] for leaf in region.leaves} for region in graph.regions(graph.narrow())]


def test_cuts_lie_between_blocks_and_outside_of_them() -> None:
    network = built(Row, 2)
    blocks = [{f"blocks.{k}.{name}" for name, _ in block.named_parameters()} for k, block in enumerate(network.blocks)]
    found = [names for names in names_of(graph_of(network), network) if names]
    assert found[1:5] == [*reversed(blocks)]
    assert set().union(*found[5:]) == {"first.weight", "first.bias"}
    free = built(Row, 2)
    free.kept = lambda name, run, *args: run(*args)  # type: ignore[method-assign]
    assert len([names for names in names_of(graph_of(free), free) if names]) > len(found), "without blocks it is cut within them"


def test_no_block_without_a_checkpoint() -> None:
    network = built(Row, 2)
    network.kept = lambda name, run, *args: run(*args)  # type: ignore[method-assign]
    graph = graph_of(network)
    assert not any(region.blocks for region in graph.regions(graph.narrow()))
    assert graph.narrow() == graph.narrow(whole_blocks=False)


@pytest.mark.parametrize("place", ["around", "inside"])
def test_tensors_that_are_saved_elsewhere(place: str) -> None:
    """What save_on_cpu has packed is there without recomputation: such a part may be cut, a block around or inside may not."""
    network, plain = built(Whole, 2), built(Whole, 2)
    free = built(Whole, 2)
    free.kept = lambda name, run, *args: run(*args)  # type: ignore[method-assign]
    without = graph_of(free).narrow()
    with save_on_cpu():
        assert graph_of(free).narrow() == without
    if place == "around":
        with save_on_cpu():
            losses = network.losses()
    else:
        through = network.through
        network.through = lambda z: _offloaded(through, z)  # type: ignore[method-assign]
        losses = network.losses()
    network.runs.clear()
    gs.GradientAggregator("cagrad").backward(losses)
    assert network.runs["trunk"] == 2
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["cagrad"]), rows)


def _offloaded(run: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with save_on_cpu():
        return run(z)


@pytest.mark.parametrize("options", [{}, {"memory": "low"}], ids=["full", "low"])
@pytest.mark.parametrize("missing", ["frame", "hook"])
def test_a_torch_without_these_names(monkeypatch: pytest.MonkeyPatch, missing: str, options: dict[str, Any]) -> None:
    """The result is the same; blocks are recomputed more often."""
    if missing == "frame":
        monkeypatch.setattr(checkpoints, "_FRAME", ())
    else:
        monkeypatch.setattr(checkpoints, "_fields", lambda kind: ())
    network, plain = built(Whole, 2), built(Whole, 2)
    found = recomputed(network, lambda losses: gs.GradientAggregator("cagrad").backward(losses, **options))
    assert found["trunk"] > 3
    rows = oracle.separate(plain, plain.losses)
    assert_gradients(network, oracle.gradients(rows, plain, ORACLES["cagrad"]), rows)


class Kept(torch.autograd.Function):
    """Saves its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * x.cos()


def test_functions_of_the_users() -> None:
    """A block whose only saving nodes are torch.autograd.Functions."""
    x, weight = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    y = checkpoint(lambda z: Kept.apply(Kept.apply(z + 1) + 2), x + weight, use_reentrant=False)
    nodes = [y.grad_fn, y.grad_fn.next_functions[0][0].next_functions[0][0]]
    assert checkpoints.blocks_of(nodes) == [(0, 1)]


def test_the_arguments_of_an_inner_block_before_torch_2_12() -> None:
    """They were saved by a node of their own, in the outer block's name."""

    class Frame:
        input_saver: Tensor

    frame = Frame()
    x = torch.randn(3, requires_grad=True)

    def outer(z: Tensor) -> Tensor:
        frame.input_saver = Kept.apply(z)
        return frame.input_saver.sin()

    y = checkpoint(outer, x, use_reentrant=False)
    assert y.grad_fn is not None
    (hook,) = checkpoints._unpacking(y.grad_fn)
    assert checkpoints._with_outer(frame) == {frame, checkpoints._frame_of(hook)}


def test_a_graph_that_was_let_go_of_says_so() -> None:
    network = built(Row, 2)
    losses = network.losses()
    gs.GradientAggregator("cagrad").backward(losses)
    before = grads(network)
    with pytest.raises(RuntimeError, match="second time"):
        gs.GradientAggregator("cagrad").backward(losses)
    assert all(torch.equal(g, before[name]) for name, g in grads(network).items())


def test_nothing_of_a_block_or_of_a_users_function_is_kept() -> None:
    def once() -> list[weakref.ref[Any]]:
        class Own(Kept):
            pass

        x = torch.randn(3, requires_grad=True)
        y = checkpoint(lambda z: Own.apply(z.sin()), x * 2, use_reentrant=False)
        gs.GradientAggregator("cagrad").backward([y.sum(), y.square().sum()], retain_graph=True)
        assert y.grad_fn is not None
        (hook,) = checkpoints._unpacking(y.grad_fn)
        return [weakref.ref(Own), weakref.ref(checkpoints._frame_of(hook))]

    seen = once()
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


class Settings(dict[str, float]):
    """Like many a configuration: it takes every name for a key."""

    def __getattr__(self, name: str) -> float:
        return self[name]


def test_arguments_of_a_block_that_are_no_tensors() -> None:
    layer, heads = nn.Linear(4, 4), [nn.Linear(4, 1) for _ in range(2)]
    z = checkpoint(lambda x, settings: settings["gain"] * layer(x), torch.randn(3, 4), Settings(gain=2.0), use_reentrant=False)
    gs.GradientAggregator("pcgrad", tasks=2).backward([head(z).sum() for head in heads])
    assert layer.weight.grad is not None
