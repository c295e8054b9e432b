"""Where autograd's graph can be cut, and how much of T gradients is there at a time."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.capture import passes
from gradsurgery.capture.graph import Graph, edges_of
from gradsurgery.capture.passes import Passes


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


def graph_of(*losses: Tensor) -> Graph:
    return Graph([edges_of([loss]) for loss in losses])


def two_losses(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.square().mean(), z.abs().sum()


def test_a_chain_of_blocks_is_cut_between_them_and_never_inside() -> None:
    stem, blocks = nn.Linear(6, 6), nn.Sequential(*[Residual(6) for _ in range(4)])
    graph = graph_of(*two_losses(blocks(stem(torch.randn(3, 6)))))
    cuts = graph.narrow()
    assert graph.private_cut in cuts
    regions = graph.regions(cuts)
    owner = {id(p): k for k, block in enumerate([stem, *blocks]) for p in block.parameters()}
    for region in regions:
        assert len({owner[id(leaf)] for leaf in region.leaves}) <= 1, "a cut lies between blocks"
    assert [owner[id(region.leaves[0])] for region in regions if region.leaves][:4] == [4, 3, 2, 1]


def test_a_connection_over_everything_leaves_no_place_to_cut_between() -> None:
    down, middle, up = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 6)
    y = down(torch.randn(3, 6)).tanh()
    z = up(torch.cat([y, middle(y).tanh()], 1))
    graph = graph_of(*two_losses(z))
    regions = graph.regions(graph.narrow())
    together = [{id(leaf) for leaf in region.leaves} for region in regions if region.leaves]
    assert any({id(middle.weight), id(up.weight)} <= leaves for leaves in together) or len(together) >= 2
    skipped = next(k for k, leaves in enumerate(together) if id(middle.weight) in leaves)
    assert all(id(down.weight) not in leaves for leaves in together[:skipped]), "the skip connection ends below"


def test_a_weight_used_twice_keeps_its_users_together() -> None:
    tied, between = nn.Linear(6, 6), nn.Linear(6, 6)
    graph = graph_of(*two_losses(tied(between(tied(torch.randn(3, 6)).tanh()).tanh())))
    homes = [region for region in graph.regions(graph.narrow()) if any(leaf is tied.weight for leaf in region.leaves)]
    assert len(homes) == 1
    assert any(leaf is between.weight for leaf in homes[0].leaves)


def test_no_cut_where_one_tasks_features_are_made_of_anothers() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    y = first(torch.randn(3, 4)).tanh()
    z = second(y).tanh()
    graph = graph_of(y.sum(), z.square().sum(), (y * z).sum())
    assert graph.private_cut not in graph.narrow()


def test_a_module_with_backward_hooks_is_not_cut() -> None:
    blocks = nn.Sequential(*[Residual(6) for _ in range(3)])
    blocks[1].register_full_backward_hook(lambda *_: None)
    assert graph_of(*two_losses(blocks(torch.randn(3, 6, requires_grad=True)))).narrow() == []


@pytest.mark.parametrize("largest", [1, 200, 10**9])
def test_slices_take_about_as_much_as_they_may(largest: int) -> None:
    blocks = nn.Sequential(*[nn.Linear(6, 6) for _ in range(8)])
    graph = graph_of(*two_losses(blocks(torch.randn(3, 6))))
    cuts = graph.slices(graph.narrow(), largest)
    sizes = [sum(leaf.numel() * 4 for leaf in region.leaves) for region in graph.regions(cuts)]
    assert sum(sizes) == 8 * 42 * 4
    assert max(sizes) <= max(largest, 42 * 4)
    assert len([size for size in sizes if size]) >= {1: 8, 200: 8, 10**9: 1}[largest]
    assert largest < 10**9 or max(sizes) == 8 * 42 * 4


def test_passes_from_cut_to_cut_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*[Residual(6) for _ in range(4)]).double()
    losses = two_losses(blocks(torch.randn(3, 6, dtype=torch.float64)))
    expected = [torch.autograd.grad(loss, list(blocks.parameters()), retain_graph=True) for loss in losses]
    graph = graph_of(*losses)
    running = Passes(graph, [{edges_of([loss])[0]: torch.ones_like(loss)} for loss in losses])
    rows = {}
    for region in graph.regions(graph.narrow()):
        rows |= running.through(region, retain_graph=False)
    for p, of_tasks in zip(blocks.parameters(), zip(*expected, strict=True), strict=True):
        assert all(torch.equal(rows[id(p)][t], g) for t, g in enumerate(of_tasks))
    with pytest.raises(RuntimeError, match="second time"):  # each region let go of what it had saved
        torch.autograd.grad(losses[0], list(blocks.parameters()))


class Held:
    """The most bytes of captured gradients that are there at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        run = passes._run

        def watched(*arguments: Any) -> dict[int, Tensor]:
            found = run(*arguments)
            for gradient in found.values():
                size = gradient.numel() * gradient.element_size()
                self.now += size
                weakref.finalize(gradient, self._gone, size)
            self.most = max(self.most, self.now)
            return found

        monkeypatch.setattr(passes, "_run", watched)

    def _gone(self, size: int) -> None:
        self.now -= size


def test_low_memory_has_few_of_the_tasks_gradients_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    T, blocks = 5, nn.Sequential(*[nn.Sequential(nn.Linear(24, 24), nn.Tanh()) for _ in range(40)])
    N = sum(p.numel() * p.element_size() for p in blocks.parameters())
    held = Held(monkeypatch)
    most = {}
    for memory in ("full", "low"):
        blocks.zero_grad()
        held.now = held.most = 0
        z = blocks(torch.randn(3, 24))
        gs.GradientAggregator("cagrad").backward([(z * k - 1).square().mean() for k in range(1, T + 1)], memory=memory)
        most[memory] = held.most
    assert most["full"] == T * N
    assert most["low"] <= N + T * N // 16, "the result, and T gradients of a few layers"


def test_most_gradients_of_a_large_parameter_near_the_losses_are_not_kept_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    T = 4
    trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 64), nn.Tanh())
    large = trunk[4].weight.nbytes
    other = sum(p.nbytes for p in trunk.parameters()) - large
    below: list[int] = []
    held = Held(monkeypatch)
    trunk[0].weight.register_hook(lambda _: below.append(held.now))
    z = trunk(torch.randn(3, 8))
    gs.GradientAggregator("cagrad").backward([(z * k - 1).square().mean() for k in range(1, T + 1)])
    assert len(below) == T
    assert max(below) <= T * other + (T - T * 2 // 3) * large, "the passes end without most of its gradients"
