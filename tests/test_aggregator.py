"""GradientAggregator against a hand-written step: T gradients, explicit projection in float64, one backward through the trunk."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.pcgrad import pcgrad
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

TASKS = ("seg", "depth", "normal")


class Pyramid(nn.Module):
    """A trunk with an FPN's output: a dict of maps at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = torch.tanh(self.stem(x))
        return {"fine": fine, "coarse": torch.tanh(self.down(fine))}


class PyramidHead(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(8, out, 1), nn.Conv2d(12, out, 1)

    def forward(self, z: dict[str, Tensor]) -> Tensor:
        return self.fine(z["fine"]) + nn.functional.interpolate(self.coarse(z["coarse"]), scale_factor=2.0)


class Network(nn.Module):
    """Trunk and heads, and how to draw a batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "tensor":
            self.trunk: nn.Module = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh())
            self.heads = nn.ModuleDict({t: nn.Linear(16, 4) for t in TASKS})
            self.shapes = ((12, 10), (12, 4))
        else:
            self.trunk = Pyramid()
            self.heads = nn.ModuleDict({t: PyramidHead(2) for t in TASKS})
            self.shapes = ((4, 3, 8, 8), (4, 2, 8, 8))

    def batch(self, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        g = torch.Generator().manual_seed(seed)
        return torch.randn(self.shapes[0], generator=g), {t: torch.randn(self.shapes[1], generator=g) for t in TASKS}


def network(kind: str = "tensor") -> Network:
    torch.manual_seed(3)
    return Network(kind)


def loss(task: str, prediction: Tensor, target: Tensor) -> Tensor:
    error = prediction.float() - target
    # Different shapes of loss, so that gradients differ in scale and direction.
    return {"seg": error.square().mean() * 3, "depth": error.abs().mean(), "normal": -prediction.float().square().mean() * 2}[task]


def gradients(net: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def assert_same(actual: nn.Module, expected: nn.Module, rtol: float = 2e-5) -> None:
    for (name, p), q in zip(actual.named_parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(
                p.grad, q.grad, rtol=rtol, atol=rtol * float(q.grad.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
            )


Step = Callable[[Network, Tensor, dict[str, Tensor], tuple[str, ...]], None]


def by_hand(net: Network, x: Tensor, y: dict[str, Tensor], present: tuple[str, ...]) -> None:
    """The specification: T separate backward passes to the representation, explicit float64 projection, one trunk backward."""
    features = net.trunk(x)
    cut = (
        {k: v.detach().requires_grad_() for k, v in features.items()}
        if isinstance(features, dict)
        else features.detach().requires_grad_()
    )
    leaves = list(cut.values()) if isinstance(cut, dict) else [cut]
    rows = []
    for task in present:
        value = loss(task, net.heads[task](cut), y[task])
        got = torch.autograd.grad(value, [*leaves, *net.heads[task].parameters()])
        rows.append(torch.cat([g.double().reshape(-1) for g in got[: len(leaves)]]))
        for p, g in zip(net.heads[task].parameters(), got[len(leaves) :], strict=True):
            p.grad = g if p.grad is None else p.grad + g
    combined = pcgrad(torch.stack(rows), order="ascending")
    parts = combined.split([leaf.numel() for leaf in leaves])
    ends = list(features.values()) if isinstance(features, dict) else [features]
    torch.autograd.backward(ends, [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)])


def by_split(surgery: gs.GradientAggregator) -> Step:
    def step(net: Network, x: Tensor, y: dict[str, Tensor], present: tuple[str, ...]) -> None:
        views = surgery.split(net.trunk(x), present)
        torch.stack([loss(t, net.heads[t](z), y[t]) for t, z in zip(present, views, strict=True)]).sum().backward()

    return step


def by_detach(surgery: gs.GradientAggregator) -> Step:
    def step(net: Network, x: Tensor, y: dict[str, Tensor], present: tuple[str, ...]) -> None:
        d = surgery.detach(net.trunk(x))
        for task in present:
            with surgery.task(task):
                loss(task, net.heads[task](d), y[task]).backward()
        surgery.backward()

    return step


FORMS = {"split": by_split, "detach": by_detach}


def aggregator(**options: Any) -> gs.GradientAggregator:
    return gs.GradientAggregator("pcgrad", tasks=TASKS, order="ascending", **options)


@pytest.mark.parametrize("kind", ["tensor", "pyramid"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("present", [TASKS, ("seg", "normal"), ("depth",)], ids="-".join)
def test_equals_the_hand_written_step(kind: str, form: str, present: tuple[str, ...]) -> None:
    ours, reference = network(kind), network(kind)
    surgery = aggregator()
    x, y = ours.batch(0)
    FORMS[form](surgery)(ours, x, y, present)
    by_hand(reference, x, y, present)
    assert_same(ours, reference)
    if present == TASKS:
        assert surgery.statistics().conflicts > 0, "the test needs a conflict to mean anything"


@pytest.mark.parametrize("form", FORMS)
def test_accumulates_over_micro_batches(form: str) -> None:
    ours, reference = network(), network()
    step = FORMS[form](aggregator())
    for micro in range(3):
        x, y = ours.batch(micro)
        step(ours, x, y, TASKS)
        by_hand(reference, x, y, TASKS)
    assert_same(ours, reference)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["tensor", "pyramid"])
def test_bfloat16_autocast(form: str, kind: str) -> None:
    ours, reference = network(kind), network(kind)
    x, y = ours.batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        FORMS[form](aggregator())(ours, x, y, TASKS)
        by_hand(reference, x, y, TASKS)
    # Both steps round the representation's gradient to bfloat16 once; that one rounding may differ by a unit in the last place.
    assert_same(ours, reference, rtol=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_checkpointed_trunk(form: str) -> None:
    ours, reference = network(), network()
    x, y = ours.batch(0)
    trunk = ours.trunk

    class Checkpointed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(trunk, x, use_reentrant=False)  # type: ignore[no-any-return]

    ours.trunk = Checkpointed()
    FORMS[form](aggregator())(ours, x, y, TASKS)
    by_hand(reference, x, y, TASKS)
    for p, q in zip(trunk.parameters(), reference.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["sum", "mean"])
def test_scalarisations_equal_plain_backward(form: str, method: str) -> None:
    ours, plain = network("pyramid"), network("pyramid")
    x, y = ours.batch(1)
    FORMS[form](gs.GradientAggregator(method, tasks=TASKS))(ours, x, y, TASKS)
    features = plain.trunk(x)
    sum(loss(t, plain.heads[t](features), y[t]) for t in TASKS).backward()  # type: ignore[union-attr]
    if method == "mean":  # the trunk's gradient is divided, the heads' are their own
        for p in plain.trunk.parameters():
            p.grad /= 3
    assert_same(ours, plain)


@pytest.mark.parametrize("form", FORMS)
def test_heads_get_exactly_their_own_gradient(form: str) -> None:
    ours, alone = network(), network()
    x, y = ours.batch(0)
    FORMS[form](aggregator())(ours, x, y, TASKS)
    for task in TASKS:
        loss(task, alone.heads[task](alone.trunk(x)), y[task]).backward()
        for p, q in zip(ours.heads[task].parameters(), alone.heads[task].parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_split_and_detach_agree_bit_for_bit_in_random_order() -> None:
    nets = [network(), network()]
    surgeries = [gs.GradientAggregator("pcgrad", tasks=TASKS, seed=11) for _ in nets]
    for batch in range(4):
        x, y = nets[0].batch(batch)
        by_split(surgeries[0])(nets[0], x, y, TASKS)
        by_detach(surgeries[1])(nets[1], x, y, TASKS)
        assert torch.equal(surgeries[0].weights, surgeries[1].weights)  # type: ignore[arg-type]


def test_detach_holds_one_head_at_a_time() -> None:
    """After a head's backward nothing of its graph is alive; only the captured gradient of the representation is."""
    alive: list[str] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
            ctx.name = name
            ctx.token = Token(name)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return g, None

    class Token:
        def __init__(self, name: str) -> None:
            self.name = name
            alive.append(name)

        def __del__(self) -> None:
            alive.remove(self.name)

    surgery = gs.GradientAggregator("pcgrad")
    trunk = nn.Linear(4, 4)
    d = surgery.detach(trunk(torch.randn(2, 4)))
    for name in ("a", "b", "c"):
        value = Watched.apply(d, name).square().sum()
        value.backward()
        del value
        assert alive == []
    surgery.backward()
    assert trunk.weight.grad is not None


def test_mixed_leaves_of_a_pytree() -> None:
    """Leaves without grad go through; a level that a head does not use counts as zeros; one that none uses gets no gradient."""
    a, b, unused = (torch.randn(3, 5, requires_grad=True) for _ in range(3))
    mask = torch.ones(3, dtype=torch.bool)
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    first, second = surgery.split({"levels": [a * 1, b * 1], "unused": unused * 1, "mask": mask, "scale": 2}, 2)
    assert first["mask"] is mask
    assert first["scale"] == 2
    (first["levels"][0].sum() + second["levels"][0].mul(-0.5).sum() + second["levels"][1].sum()).backward()
    rows = torch.stack([torch.cat([torch.ones(15), torch.zeros(15)]), torch.cat([-0.5 * torch.ones(15), torch.ones(15)])]).double()
    expected = pcgrad(rows, order="ascending").float()
    torch.testing.assert_close(torch.cat([a.grad.reshape(-1), b.grad.reshape(-1)]), expected)  # type: ignore[union-attr]
    assert unused.grad is None


@pytest.mark.parametrize("form", ["split", "detach"])
def test_one_tensor_in_two_places_counts_once(form: str) -> None:
    """Task 0 reads it in one place and task 1 in the other: they conflict all the same."""
    x = torch.zeros(2, requires_grad=True)
    z = x * 1
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    g0, g1 = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    if form == "split":
        first, second = surgery.split({"a": z, "b": z}, 2)
        ((first["a"] * g0).sum() + (second["b"] * g1).sum()).backward()
    else:
        d = surgery.detach({"a": z, "b": z})
        (d["a"] * g0).sum().backward()
        (d["b"] * g1).sum().backward()
        surgery.backward()
    assert surgery.statistics().conflicts == 1
    torch.testing.assert_close(x.grad, pcgrad(torch.stack([g0, g1])).float())


def test_captured_gradients_are_gone_before_the_trunk_runs_backward() -> None:
    x = torch.randn(3, requires_grad=True)
    surgery = gs.GradientAggregator("pcgrad")
    d = surgery.detach(x * 2)
    for factor in (1.0, -2.0):
        (d * factor).sum().backward()
    captured = [weakref.ref(row[0]) for row in surgery._pending("test").unnamed.values() if row[0] is not None]
    alive: list[int] = []
    x.register_hook(lambda g: alive.append(sum(ref() is not None for ref in captured)))
    surgery.backward()
    assert len(captured) == 2
    assert alive == [0]


def test_channels_last_and_expanded_gradients() -> None:
    """Gradients come back in whatever strides the heads give them: channels_last, expanded (from .sum()), transposed."""
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    surgery = gs.GradientAggregator("pcgrad", order="ascending")
    z = surgery.split(x * 1, 3)
    last = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    values = [(z[0] * last).sum(), z[1].sum(), -(z[2].transpose(1, 3) * last.transpose(1, 3)).mean() * 40]
    torch.stack(values).sum().backward()
    rows = torch.stack([last.reshape(-1), torch.ones(192), -last.reshape(-1) * 40 / 192]).double()
    torch.testing.assert_close(x.grad.reshape(-1), pcgrad(rows, order="ascending").float(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


# --- GradScaler -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_grad_scaler_changes_nothing_but_the_scale(form: str) -> None:
    plain, scaled = network(), network()
    x, y = plain.batch(0)
    FORMS[form](aggregator())(plain, x, y, TASKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    surgery = aggregator()
    if form == "split":
        views = surgery.split(scaled.trunk(x))
        total = torch.stack([loss(t, scaled.heads[t](z), y[t]) for t, z in zip(TASKS, views, strict=True)]).sum()
        scaler.scale(total).backward()
    else:
        d = surgery.detach(scaled.trunk(x))
        for t in TASKS:
            with surgery.task(t):
                scaler.scale(loss(t, scaled.heads[t](d), y[t])).backward()
        surgery.backward()
    scaler.unscale_(optimizer)
    assert_same(scaled, plain)


def test_overflow_in_one_task_skips_the_step_and_is_seen() -> None:
    net = network()
    x, y = net.batch(0)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    key = surgery.key.clone()
    views = surgery.split(net.trunk(x))
    values = [loss(t, net.heads[t](z), y[t]) for t, z in zip(TASKS, views, strict=True)]
    values[1] = values[1] * float("inf")
    scaler.scale(torch.stack(values).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert scaler.get_scale() < 2.0**10
    assert surgery.statistics().nonfinite
    assert torch.equal(surgery.key, key), "a skipped step leaves the order counter alone"


# --- modes and structure ----------------------------------------------------------------------------------------------------------


def test_eval_and_no_grad_pass_features_through() -> None:
    surgery = aggregator()
    x = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert all(z is x for z in surgery.split(x))
        assert surgery.detach(x) is x
    surgery.eval()
    assert all(z is x for z in surgery.split(x))
    assert all(z is not x for z in surgery.train().split(x))
    frozen = torch.randn(2, 3)
    assert all(z is frozen for z in surgery.eval().split(frozen))
    with surgery.task("seg"):
        pass
    assert not surgery.history


def test_several_aggregators_in_one_model() -> None:
    """Surgery at two depths, one inside the other's trunk."""
    inner, outer = (gs.GradientAggregator("pcgrad", tasks=2, order="ascending") for _ in range(2))
    stem, trunk = nn.Linear(3, 5), nn.Linear(5, 5)
    heads = [nn.Linear(5, 1) for _ in range(4)]
    early = stem(torch.randn(7, 3))
    shallow, deep = inner.split(early)
    left, right = outer.split(trunk(deep))
    (heads[0](shallow).sum() + heads[1](left).sum() - heads[2](right).sum() + heads[3](right).square().sum()).backward()
    assert len(inner.history) == len(outer.history) == 1
    assert stem.weight.grad is not None
    assert trunk.weight.grad is not None


def test_in_place_change_of_a_view_is_refused() -> None:
    """A head that overwrites its view would change what the other heads see."""
    z = aggregator().split(torch.randn(2, 3, requires_grad=True) * 1)
    with pytest.raises(RuntimeError, match=r"in-?place"):
        z[0].relu_()


def test_aggregator_stands_in_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), gs.GradientAggregator("pcgrad", tasks=("a", "b")))
    a, b = model(torch.randn(2, 3))
    (a.sum() - b.sum()).backward()
    assert model[0].weight.grad is not None
    assert "1.key" in model.state_dict()
    clone = copy.deepcopy(model)
    assert clone[1].tasks == ("a", "b")


def test_split_compiles_around() -> None:
    """A compiled trunk and compiled heads with an eager boundary between them."""
    ours, reference = network(), network()
    x, y = ours.batch(0)
    trunk = torch.compile(ours.trunk, backend="aot_eager")
    surgery = aggregator()
    views = surgery.split(trunk(x))
    heads = {t: torch.compile(ours.heads[t], backend="aot_eager") for t in TASKS}
    torch.stack([loss(t, heads[t](z), y[t]) for t, z in zip(TASKS, views, strict=True)]).sum().backward()
    by_hand(reference, x, y, TASKS)
    assert_same(ours, reference)


# --- state ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_resumes_to_the_same_bits(form: str, tmp_path: Any) -> None:
    def run(net: Network, surgery: gs.GradientAggregator, steps: range) -> list[Tensor]:
        weights = []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for step in steps:
            x, y = net.batch(step)
            optimizer.zero_grad()
            FORMS[form](surgery)(net, x, y, TASKS)
            optimizer.step()
            weights.append(surgery.weights)
        return weights  # type: ignore[return-value]

    whole_net, whole = network(), gs.GradientAggregator("pcgrad", tasks=TASKS, seed=5)
    expected = run(whole_net, whole, range(8))
    half_net, half = network(), gs.GradientAggregator("pcgrad", tasks=TASKS, seed=5)
    run(half_net, half, range(4))
    torch.save({"net": half_net.state_dict(), "surgery": half.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    net, surgery = network(), gs.GradientAggregator("pcgrad", tasks=TASKS)
    net.load_state_dict(saved["net"])
    surgery.load_state_dict(saved["surgery"])
    for a, b in zip(run(net, surgery, range(4, 8)), expected[4:], strict=True):
        assert torch.equal(a, b)
    for p, q in zip(net.parameters(), whole_net.parameters(), strict=True):
        assert torch.equal(p, q)
    assert surgery.statistics().step == 7


def test_copies_and_pickles_carry_the_state_alone() -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"))
    balancer = gs.GradNorm(("a", "b"), aggregator=surgery)
    a, b = surgery.split(torch.randn(3, requires_grad=True) * 1)
    balancer([a.sum(), -b.sum()]).backward()
    surgery.detach(torch.randn(3, requires_grad=True) * 1)
    for twin in (copy.deepcopy(surgery), pickle.loads(pickle.dumps(surgery))):
        assert torch.equal(twin.key, surgery.key)
        assert twin.statistics().step == 0
        assert not twin._history._step_hooks
        twin.detach(torch.randn(3, requires_grad=True) * 1)  # nothing is under way there


def test_state_of_another_method_or_other_tasks_is_refused() -> None:
    state = gs.GradientAggregator("pcgrad", tasks=("a", "b"), order="ascending").state_dict()
    with pytest.raises(ValueError, match="state_dict: expected the state of 'sum', found one of 'pcgrad'"):
        gs.GradientAggregator("sum", tasks=("a", "b")).load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict: expected the tasks"):
        gs.GradientAggregator("pcgrad", tasks=("a", "c"), order="ascending").load_state_dict(state)


# --- tasks ------------------------------------------------------------------------------------------------------------------------


def test_unnamed_tasks_come_in_order() -> None:
    surgery = gs.GradientAggregator("pcgrad")
    d = surgery.detach(torch.randn(2, 3, requires_grad=True) * 1)
    for factor in (1.0, -2.0, 3.0):
        (d * factor).sum().backward()
    surgery.backward()
    assert surgery.tasks == ("0", "1", "2")
    torch.testing.assert_close(surgery.statistics().norms, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * 6**0.5)


def test_a_task_may_appear_later_and_be_absent() -> None:
    surgery = gs.GradientAggregator("pcgrad")
    x = torch.randn(2, 3, requires_grad=True)
    for names in (("a",), ("a", "b"), ("b",)):
        torch.stack([z.sum() for z in surgery.split(x * 1, names)]).sum().backward()
    assert surgery.tasks == ("a", "b")
    assert [s.present for s in surgery.history] == [(True,), (True, True), (False, True)]
    assert surgery.weights.tolist() == [0.0, 1.0]  # type: ignore[union-attr]


def test_a_named_task_may_come_in_several_backwards() -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"), order="ascending")
    x = torch.randn(4, requires_grad=True)
    d = surgery.detach(x * 1)
    for name, factor in (("b", -1.0), ("a", 1.0), ("a", 2.0)):
        with surgery.task(name):
            (d * factor).sum().backward()
    surgery.backward()
    torch.testing.assert_close(surgery.statistics().norms, torch.tensor([6.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(x.grad, torch.zeros(4), atol=1e-6, rtol=0)


def test_mean_counts_the_tasks_present() -> None:
    x = torch.randn(4, requires_grad=True)
    for method in ("mean", "pcgrad"):
        options = {} if method == "mean" else {"reduction": "mean"}
        surgery = gs.GradientAggregator(method, tasks=("a", "b", "c"), **options)
        x.grad = None
        a, b = surgery.split(x * 1, ("a", "c"))
        (a.sum() + b.sum()).backward()
        torch.testing.assert_close(x.grad, torch.ones(4))
