"""``diagnose`` against float64 gradients of torch.autograd.grad, task by task and layer by layer; and what it leaves behind."""

from __future__ import annotations

import copy
import random
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from ranks.diagnosing import diagnosed
from ranks.diagnosing import losses as rank_losses
from ranks.launch import ranks
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs

Losses = Callable[[Any, Any], Any]


class Net(nn.Module):
    """A trunk with all that changes in a forward pass, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.utils.spectral_norm(nn.Linear(16, 8)), nn.Tanh()
        )
        self.seg, self.depth = nn.Linear(8, 4), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.cache: dict[str, int] = {}
        self.rebound = torch.zeros(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.seen = self.seen + 1  # bound anew rather than written
        self.cache[f"call {self.calls}"] = 1
        self.rebound.add_(1)  # a tensor that is no buffer
        self.extra = 1
        z = self.trunk(x)
        return self.seg(z), self.depth(z)


def two_losses(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    x, classes, depth = batch
    seg, z = model(x)
    return {"seg": functional.cross_entropy(seg, classes), "depth": functional.l1_loss(z, depth)}


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(7, 6, dtype=dtype), torch.randint(4, (7,)), torch.randn(7, 1, dtype=dtype)


def state(model: nn.Module) -> dict[str, Any]:
    """All that can be seen of a model, with copies of what it holds."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            found[f"{name}/{key}"] = value, copied(value)
    for name, p in model.named_parameters():
        found[f"{name}.grad"] = p.grad, None if p.grad is None else p.grad.clone()
        found[f"{name}.requires_grad"] = p.requires_grad, p.requires_grad
    return found


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Fails unless everything is as it was: objects, values and the next random numbers."""
    torch.rand(1)
    before = state(model)
    versions = {name: p._version for name, p in model.named_parameters()}
    expected = next_numbers()
    yield
    after = state(model)
    assert list(after) == list(before)
    for name, (held, value) in before.items():
        assert after[name][0] is held, name
        assert same(value, after[name][1]), name
    assert {name: p._version for name, p in model.named_parameters()} == versions, "a graph of the caller's stays valid"
    assert next_numbers() == expected


def next_numbers() -> tuple[float, float, float]:
    """The numbers that come next, without drawing them."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    found = float(torch.rand(1)), float(np.random.rand()), random.random()
    torch.set_rng_state(kept[0])
    np.random.set_state(kept[1])
    random.setstate(kept[2])
    return found


def oracle(model: nn.Module, batch: Any, losses: Losses, layers: dict[str, list[Tensor]]) -> Tensor:
    """K of each layer from a backward pass a task, in float64. [G, T, T]"""
    twin = {id(p): p for ps in layers.values() for p in ps}
    found = losses(model, batch)
    rows = []
    for loss in found.values() if isinstance(found, dict) else found:
        total = sum(loss) if isinstance(loss, list) else loss
        grads = torch.autograd.grad(total, list(twin.values()), retain_graph=True, allow_unused=True)
        rows.append({key: g.to_dense().double() if g is not None else torch.zeros(p.shape, dtype=torch.float64)
                     for (key, p), g in zip(twin.items(), grads, strict=True)})  # fmt: skip
    result = []
    for ps in layers.values():
        flat = torch.stack([torch.cat([row[id(p)].flatten() for p in ps]) for row in rows])
        result.append(flat @ flat.T)
    return torch.stack(result)


def by_layer(module: nn.Module) -> dict[str, list[Tensor]]:
    layers: dict[str, list[Tensor]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            layers.setdefault(name.rpartition(".")[0], []).append(p)
    return layers


def compare(found: gs.Diagnosis, grams: Tensor, tolerance: float = 1e-12) -> None:
    scale = float(grams.abs().max())
    torch.testing.assert_close(found.statistics.group_grams, grams, rtol=tolerance, atol=tolerance * scale)
    torch.testing.assert_close(found.gram, grams.sum(0), rtol=tolerance, atol=tolerance * scale)
    norms = grams.diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(found.layer_norms, norms, rtol=1e-6, atol=1e-6 * scale**0.5)
    expected = grams / norms[:, :, None] / norms[:, None]
    clear = norms[:, :, None] * norms[:, None] > 1e-9 * scale
    torch.testing.assert_close(found.layer_cosines[clear], expected[clear], rtol=1e-6, atol=1e-6)
    total = grams.sum(0)
    torch.testing.assert_close(found.cosines, total / torch.outer(total.diagonal().sqrt(), total.diagonal().sqrt()))


# --- the numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("as_module", [True, False])
def test_gradients_are_those_of_a_backward_pass_a_task(train: bool, as_module: bool) -> None:
    model, batch = Net().double().train(train), data(torch.float64)
    twin = copy.deepcopy(model)
    kept = torch.get_rng_state()
    found = gs.diagnose(model, batch, two_losses, model.trunk if as_module else None)
    torch.set_rng_state(kept)
    compare(found, oracle(twin, batch, two_losses, by_layer(twin.trunk)))
    assert found.tasks == ("seg", "depth")
    assert found.layers == (("0", "1", "4") if as_module else ("trunk.0", "trunk.1", "trunk.4"))
    torch.set_rng_state(kept)
    twice = {name: float(loss.detach()) for name, loss in two_losses(twin.train(train), batch).items()}
    if not train:
        assert found.losses.tolist() == pytest.approx(list(twice.values()))


def test_names_come_from_the_model() -> None:
    model, batch = Net(), data()
    whole = gs.diagnose(model, batch, two_losses).layers
    assert gs.diagnose(model, batch, two_losses, model.trunk.parameters()).layers == whole
    assert gs.diagnose(model, batch, two_losses, model.trunk.named_parameters(prefix="body")).layers == (
        "body.0",
        "body.1",
        "body.4",
    )
    assert gs.diagnose(model, batch, two_losses, [model.trunk[0].weight]).layers == ("trunk.0",)
    assert gs.diagnose(model, batch, two_losses, model.trunk[0]).layers == ("(itself)",)
    outside = Net()
    assert gs.diagnose(model, batch, lambda _, b: two_losses(outside, b), outside.trunk[0].parameters()).layers == (
        "shared[0]", "shared[1]",
    )  # fmt: skip


def test_sequences_lists_and_absent_tasks() -> None:
    model, batch = Net().double().eval(), data(torch.float64)

    def lists(m: Any, b: Any) -> list[Any]:
        seg, depth = two_losses(m, b).values()
        return [None, [seg, 2 * seg], depth]

    found = gs.diagnose(model, batch, lists)
    assert found.tasks == ("0", "1", "2")
    assert found.present == (False, True, True)
    assert found.norms[0] == 0
    assert found.losses.isnan().tolist() == [True, False, False]
    grams = oracle(model, batch, lambda m, b: lists(m, b)[1:], by_layer(model.trunk))
    torch.testing.assert_close(found.statistics.group_grams[:, 1:, 1:], grams)
    assert "absent" in str(found)


class Tied(nn.Module):
    """An embedding with sparse gradients, and one matrix that is used twice."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 5, sparse=sparse, max_norm=0.7)
        self.mix = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.mix.weight
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.mix(self.frozen(self.words(x))).tanh())


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_tied_and_frozen(sparse: bool) -> None:
    model, batch = Tied(sparse).double(), torch.randint(9, (4, 3))
    losses = lambda m, x: {"a": m(x).square().mean(), "b": (m(x[:2]) - 1).abs().mean(), "c": m(x)[0].sum()}  # noqa: E731
    with unchanged(model):
        found = gs.diagnose(model, batch, losses)
    assert found.layers == ("words", "mix", "again")
    compare(found, _tied(model, batch, losses))


def _tied(model: nn.Module, batch: Any, losses: Losses) -> Tensor:
    twin = copy.deepcopy(model)
    return oracle(twin, batch, losses, by_layer(twin))


def test_zero_gradients_are_told() -> None:
    found = gs.diagnose(Net(), data(), lambda m, b: two_losses(m, b) | {"nothing": 0.0 * m(b[0])[0].sum()})
    assert found.norms[2] == 0
    assert found.cosines[2].isnan().all()
    assert "The gradient of nothing is zero at the shared parameters" in found.suggestion


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_told(bad: float) -> None:
    model, batch = Net(), data()
    with unchanged(model):
        found = gs.diagnose(model, batch, lambda m, b: two_losses(m, b) | {"broken": bad * m(b[0])[0].sum()})
    assert found.suggestion.startswith("The gradient of broken is not finite on this batch")
    assert found.statistics.nonfinite
    assert [(pair.a, pair.b) for pair in found.conflicts] in ([], [("seg", "depth")])
    assert "NaN" in str(found)


def test_bfloat16() -> None:
    model, batch = Net().bfloat16().eval(), data(torch.bfloat16)
    with unchanged(model):
        found = gs.diagnose(model, batch, two_losses)
    compare(found, oracle(model, batch, two_losses, by_layer(model.trunk)), 1e-6)


def test_autocast_of_the_caller_holds_and_stays() -> None:
    model, batch = Net().eval(), data()
    seen: list[torch.dtype] = []

    def losses(m: Any, b: Any) -> Any:
        seen.append(m(b[0])[0].dtype)
        return two_losses(m, b)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        pending = sum(two_losses(model, batch).values())
        with unchanged(model):
            gs.diagnose(model, batch, losses)
        assert torch.is_autocast_enabled("cpu")
        again = sum(two_losses(model, batch).values())
    pending.backward()
    again.backward()
    assert seen == [torch.bfloat16]


@pytest.mark.slow
def test_what_is_compiled_runs_as_it_is_written() -> None:
    model, batch = Net().double().eval(), data(torch.float64)
    expected = gs.diagnose(model, batch, two_losses)
    compiled = torch.compile(model)
    found = gs.diagnose(compiled, batch, two_losses)
    assert found.layers == expected.layers
    torch.testing.assert_close(found.statistics.group_grams, expected.statistics.group_grams)
    model.compile()
    assert gs.diagnose(model, batch, two_losses).layers == expected.layers


# --- what is left behind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_nothing_has_happened(train: bool) -> None:
    model, batch = Net().train(train), data()
    sum(two_losses(model, batch).values()).backward()  # there are gradients, and statistics
    model.seg.weight.grad = None
    model.seg.bias.requires_grad_(False)
    with unchanged(model):
        gs.diagnose(model, batch, two_losses)
    with unchanged(model), torch.no_grad():
        gs.diagnose(model, batch, two_losses, shared=model.trunk)
        assert not torch.is_grad_enabled()


def test_the_next_dropout_mask_is_the_same(device: torch.device) -> None:
    model, batch = Net().to(device), tuple(part.to(device) for part in data())
    twin = copy.deepcopy(model)
    with torch.random.fork_rng():
        expected = [float(loss.detach()) for loss in two_losses(twin, batch).values()]
    found = gs.diagnose(model, batch, two_losses)
    assert [float(loss.detach()) for loss in two_losses(model, batch).values()] == expected == pytest.approx(found.losses.tolist())


def test_a_graph_of_the_caller_is_still_good() -> None:
    model, batch = Net(), data()
    loss = sum(two_losses(model, batch).values())
    gs.diagnose(model, batch, two_losses)
    loss.backward()
    assert model.trunk[0].weight.grad is not None


@pytest.mark.parametrize("where", ["before", "after", "passes"])
def test_nothing_has_happened_where_something_is_raised(where: str) -> None:
    model, batch = Net(), data()
    sum(two_losses(model, batch).values()).backward()

    def losses(m: Any, b: Any) -> Any:
        m.eval()
        random.random()
        np.random.rand()
        if where == "before":
            raise KeyError("planted")
        found = two_losses(m, b)
        with torch.no_grad():
            m.seg.weight.fill_(3)
            m.trunk.requires_grad_(False)
        if where == "after":
            raise KeyError("planted")
        broken = Broken.apply(found["seg"])
        m.trunk.requires_grad_(True)
        return {"seg": broken, "depth": found["depth"]}

    with unchanged(model), pytest.raises(KeyError, match="planted"):
        gs.diagnose(model, batch, losses)


class Broken(torch.autograd.Function):
    """Raises in the backward pass."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        raise KeyError("planted")


def test_optimizers_in_the_backward_pass_do_not_step() -> None:
    model, batch = Net(), data()
    called: list[str] = []
    for name, p in model.named_parameters():
        optimizer = torch.optim.SGD([p], lr=1.0)

        def step(p: Tensor, optimizer: Any = optimizer, name: str = name) -> None:
            called.append(name)
            optimizer.step()

        p.register_post_accumulate_grad_hook(step)
    values = [p.detach().clone() for p in model.parameters()]
    gs.diagnose(model, batch, two_losses)
    assert called == []
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


def test_a_backward_pass_inside_is_refused_and_undone() -> None:
    model, batch = Net(), data()
    sum(two_losses(model, batch).values()).backward()

    def losses(m: Any, b: Any) -> Any:
        sum(two_losses(m, b).values()).backward()
        return two_losses(m, b)

    with unchanged(model), pytest.raises(RuntimeError, match=r"losses: expected a function that returns losses, found .*backward"):
        gs.diagnose(model, batch, losses)


# --- what it says -------------------------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """Two tasks that want the same of every layer but one, of which they want opposite things."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({f"block{k}": nn.Linear(4, 4) for k in range(14)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: block(x).sum() for name, block in self.blocks.items()}


def planted(m: Any, x: Tensor) -> dict[str, Tensor]:
    parts = m(x)
    fought = parts.pop("block5")
    return {"a": 0.2 * sum(parts.values()) + 5 * fought, "b": 0.2 * sum(parts.values()) - 5 * fought}


def test_a_planted_conflict_is_named() -> None:
    model, x = Planted(), torch.randn(8, 4)
    found = gs.diagnose(model, x, planted)
    assert [(pair.a, pair.b) for pair in found.conflicts] == [("a", "b")]
    rows = found.conflicting_layers("a", "b")
    assert [row.layer for row in rows] == ["blocks.block5"]
    assert rows[0].cosine == pytest.approx(-1)
    assert rows[0].share == pytest.approx(1)
    assert found.conflicting_layers("b", "a") == rows
    assert "a and b conflict in this batch (cosine −" in found.suggestion
    assert "100 % of what is negative in their product is in blocks.block5" in found.suggestion
    assert "One batch shows a tendency" in found.suggestion


def test_healthy_tasks_need_no_surgery() -> None:
    found = gs.diagnose(Net().eval(), data(), lambda m, b: [m(b[0])[0].square().mean(), 1.5 * m(b[0])[0].square().mean()])
    assert found.conflicts == []
    assert "No pair of tasks conflicts here" in found.suggestion
    assert "Surgery would have nothing to do on this batch" in found.suggestion
    assert "times as long" not in found.suggestion


def test_a_task_that_dominates_is_named() -> None:
    found = gs.diagnose(
        Net().eval(), data(), lambda m, b: {"big": 100 * m(b[0])[0].square().mean(), "small": m(b[0])[0].square().mean()}
    )
    assert "big's gradient is 100 times as long as small's" in found.suggestion


class Parts(nn.Module):
    """Two layers, numbered, of whose gradients the losses are to make what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x).sum() for layer in self.layers]


def weighed(**tasks: tuple[float, ...]) -> gs.Diagnosis:
    """Tasks with gradients of these sizes in the layers, all in one direction."""
    model = Parts()
    losses = lambda m, x: {t: sum(w * part for w, part in zip(ws, m(x), strict=True)) for t, ws in tasks.items()}  # noqa: E731
    return gs.diagnose(model, torch.ones(1, 3), losses, model.layers)


def test_lengths_come_first_where_they_are_far_apart() -> None:
    far, near = weighed(a=(86, 0, 0), b=(-0.5, 0.8, 0)).suggestion, weighed(a=(5, 0, 0), b=(-0.5, 0.8, 0)).suggestion
    assert far.startswith("a's gradient is 91.2 times as long as b's")
    assert near.startswith(
        "a and b conflict in this batch (cosine −0.53): 100 % of what is negative in their product is in layer 0."
    )
    assert "If it lasts" in far
    assert "5.3 times as long" in near
    assert "strongly" not in far + near


def test_the_table_of_layers_leads_with_pairs_that_conflict() -> None:
    text = str(weighed(a=(1, 0, 1), b=(-0.5, 0.1, -0.001), c=(2, -0.2, -0.1)))
    rows = text.partition("conflicting layers")[2].splitlines()
    assert [row.split()[:4] for row in rows[1:3]] == [["layer", "0", "a", "b"], ["layer", "0", "b", "c"]]
    assert rows[3].split()[:4] == ["layer", "1", "b", "c"]
    assert rows[4].split()[:4] == ["layer", "2", "a", "c"], "whose cosine over all layers is positive"
    assert "… and 1 more layer with a negative cosine" in text, "that brings less than 1 %"
    assert "share: of all that is negative in the product of the two tasks' gradients" in text


@pytest.mark.parametrize("tasks", [2, 7, 8, 20])
def test_the_text_fits(tasks: int) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = [f"a_layer_with_quite_a_long_name_{k}" for k in range(30)]
            self.very_long_prefix_of_all_layers = nn.ModuleDict({name: nn.Linear(3, 3) for name in names})

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x) for layer in self.very_long_prefix_of_all_layers.values()])

    signs = torch.randn(tasks, 30, 4, 3)
    losses = lambda m, x: {f"a_task_with_a_long_name_{t}": (m(x) * signs[t]).sum() for t in range(tasks)}  # noqa: E731
    model = Wide()
    found = gs.diagnose(model, torch.randn(4, 3), losses)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    assert f"{tasks} tasks at 30 shared layers, one batch" in text
    negative = sum(float(found.layer_cosines[g, i, j]) < 0 for g in range(30) for i in range(tasks) for j in range(i))
    assert f"… and {negative - 10:,} more layer" in text
    pairs = [(pair.a, pair.b) for pair in found.conflicts] or list(combinations(found.tasks, 2))
    worst = min(row.cosine for pair in pairs for row in found.conflicting_layers(*pair) if row.share >= 0.01)
    lines = text.splitlines()
    first = lines[next(k for k, line in enumerate(lines) if line.startswith("conflicting layers")) + 1]
    assert f"−{-worst:.3f}" in first
    assert "nan" not in text


def test_no_warning_and_no_trace_of_cuda() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        str(gs.diagnose(Net(), data(), two_losses))


# --- wrong arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": 3}, TypeError, r"model: expected a torch\.nn\.Module, found int"),
        ({"losses": {"a": torch.ones(())}}, TypeError, r"losses: expected a function of \(model, batch\) .* found dict"),
        ({"losses": nn.Linear(1, 1)}, TypeError, r"losses: expected a function .* found Linear"),
        ({"losses": lambda m, b: m(b[0])[0].sum()}, TypeError, r"losses: expected a dict by task or a sequence .* found Tensor"),
        ({"losses": lambda m, b: {"a": m(b[0])[0].sum(), "b": None}}, ValueError, "two tasks or more, found one, of 'a'"),
        ({"losses": lambda m, b: {"a": None, "b": None}}, ValueError, r"losses: expected a loss .* found only None"),
        ({"losses": lambda m, b: [m(b[0])[0], m(b[0])[1].sum()]}, ValueError, r"losses\[0\]: expected a scalar, found shape"),
        ({"losses": lambda m, b: [m(b[0])[0].sum().detach(), m(b[0])[1].sum()]}, ValueError, r"losses\[0\]: .* requires grad"),
        ({"losses": lambda m, b: {1: m(b[0])[0].sum(), 2: m(b[0])[1].sum()}}, TypeError, r"losses: .* names to be strings"),
        ({"losses": lambda m, _: [m.seg(torch.ones(2, 8)).sum(), m.depth(torch.ones(2, 8)).sum()]}, ValueError, "two or more"),
        ({"shared": []}, ValueError, r"shared: expected parameters, found none"),
        ({"shared": 3}, TypeError, r"shared: expected a module or parameters, found int"),
        ({"shared": [torch.ones(1)]}, ValueError, r"shared: expected parameters to train, found 1 that are frozen"),
        ({"shared": nn.Linear(2, 2)}, ValueError, r"shared: expected parameters that some loss depends on, found 2"),
        ({"model": nn.LazyLinear(3)}, ValueError, r"model: expected parameters with shapes, found the lazy 'weight'"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"model": Net(), "batch": data(), "losses": two_losses, "shared": None} | change
    with pytest.raises(error, match=match):
        gs.diagnose(**arguments)


def test_wrappers_are_refused() -> None:
    class DistributedDataParallel(nn.Module):
        """Stands for torch's, which needs a process group."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(ValueError, match=r"found DistributedDataParallel around the model itself.*pass model\.module"):
        gs.diagnose(DistributedDataParallel(Net()), data(), two_losses)


@pytest.mark.slow
def test_several_processes() -> None:
    for rank, (text, gram, said) in enumerate(ranks(2, diagnosed)):
        assert f"one batch of rank {rank} of 2" in text
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        for p in model.parameters():
            nn.init.constant_(p, 0.1)
        batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(rank))
        torch.testing.assert_close(gs.diagnose(model, batch, rank_losses).gram, gram)
        assert len(said) == 3
        assert "found DistributedDataParallel around the model itself" in said[0]
        assert "found DistributedDataParallel around module '0'" in said[1]
        assert "found '0.weight' in parts on several processes" in said[2]


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"):
        gs.diagnose(Net(), data(), two_losses)


def test_unknown_tasks_are_refused() -> None:
    found = gs.diagnose(Net(), data(), two_losses)
    with pytest.raises(ValueError, match=r"b: expected one of seg, depth, found 'normals'"):
        found.conflicting_layers("seg", "normals")
    with pytest.raises(ValueError, match=r"b: expected another task than a, found 'seg' again"):
        found.conflicting_layers("seg", "seg")


class Keeper(Net):
    """Keeps what it has seen in all kinds of places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expanded", torch.zeros(1, 3).expand(4, 3))
        self.recent, self.counted = deque([0], maxlen=3), defaultdict(int, begun=1)
        self.nested = {"levels": [[0], {1}]}
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.expanded[0].add_(1)
        self.recent.append(self.calls)
        self.counted["forward"] += 1
        self.nested["levels"][0].append(2)
        self.nested["levels"][1].add(3)
        self.drawn = torch.rand((), generator=self.generator)
        return super().forward(x)


def test_what_modules_keep_is_put_back_wherever_it_is() -> None:
    model = Keeper()
    before = model.generator.get_state()
    gs.diagnose(model, data(), two_losses)
    assert torch.equal(model.expanded, torch.zeros(4, 3))
    assert model.expanded.stride() == (0, 1)
    assert list(model.recent) == [0]
    assert model.counted == {"begun": 1}
    assert model.nested == {"levels": [[0], {1}]}
    assert torch.equal(model.generator.get_state(), before)
    assert not hasattr(model, "drawn")
