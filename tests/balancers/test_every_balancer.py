"""What holds of every registered balancer, and the properties that each declares."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from balancers.problems import SCALES, TASKS, Net, Run, build, same
from host_copies import NoHostCopies
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers import Balancer

NAMES = sorted(gs.balancers())
every = pytest.mark.parametrize("name", NAMES)


def with_property(*properties: str) -> pytest.MarkDecorator:
    names = [name for name, spec in gs.balancers().items() if set(properties) <= spec.properties]
    assert names, f"no balancer declares {properties}"
    return pytest.mark.parametrize("name", names)


def leaves(values: list[float], dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Tensor]]:
    """A layer whose weight [3, 1] holds these values, and each of them as a loss: the weight's gradient is the losses' weights."""
    layer = nn.Linear(1, 3, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values, dtype=dtype)[:, None])
    return layer, {t: layer.weight[i, 0] for i, t in enumerate(TASKS)}


def trained(name: str, steps: int = 5) -> Run:
    run = Run(name)
    for seed in range(steps):
        run.step(seed)
    return run


@every
def test_runs_in_a_loop_with_surgery(name: str) -> None:
    run = Run(name)

    def losses() -> dict[str, float]:
        return {t: v.item() for t, v in run.net.losses([run.net.features(0)] * 3, 0).items()}

    before = losses()
    for _ in range(60):
        run.step(0)
    after = losses()
    assert all(after[t] < before[t] for t in TASKS), f"{before} -> {after}"
    assert run.balancer.weights.shape == (3,)
    assert run.balancer.weights.isfinite().all()


@every
def test_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = Run(name)
    totals = [whole.step(seed) for seed in range(10)]
    half = trained(name)
    torch.save(half.state(), tmp_path / "half.pt")
    torch.rand(7)  # whatever happens between the two processes
    resumed = Run(name)
    resumed.load(torch.load(tmp_path / "half.pt", weights_only=True))
    assert same([resumed.step(seed) for seed in range(5, 10)], totals[5:])
    assert same(resumed.state(), whole.state())


@every
def test_the_state_of_other_tasks_is_refused_and_nothing_taken(name: str) -> None:
    saved = trained(name).balancer.state_dict()
    for tasks in (tuple(reversed(TASKS)), TASKS[:-1], [str(t) for t in range(len(TASKS))]):
        other = build(name, nn.Linear(2, 2), tasks)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=r"state_dict: expected the tasks \[.*\], found \["):
            other.load_state_dict(saved)
        assert same(dict(other.state_dict()), dict(before))


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["deepcopy", "pickle"])
def test_copies_go_on_like_the_original_and_apart_from_it(name: str, copied: Callable[[Any], Any]) -> None:
    run = trained(name)
    # The optimizer knows parameters by identity, hence one copy of all three.
    parts = copied((run.net, run.balancer, run.optimizer))
    other = Run(name)
    other.net, other.balancer, other.optimizer = parts
    other.surgery.load_state_dict(run.surgery.state_dict())
    before = copy.deepcopy(run.balancer.state_dict())
    totals = [other.step(seed) for seed in range(5, 8)]
    assert same(run.balancer.state_dict(), before)
    assert same([run.step(seed) for seed in range(5, 8)], totals)
    assert same(run.balancer.state_dict(), other.balancer.state_dict())


@every
def test_a_dict_is_the_sequence_by_name(name: str) -> None:
    found = []
    for as_dict in (True, False):
        run = trained(name)
        losses = run.net.losses([run.net.features(9)] * 3, 9, absent="b")
        run.optimizer.zero_grad()
        total = run.balancer(dict(reversed(losses.items())) if as_dict else [losses.get(t) for t in TASKS])
        total.backward()
        found.append((total.detach(), [p.grad for p in run.net.trunk.parameters()], run.balancer.state_dict()))
    assert same(*found)


@every
def test_weights_are_the_gradients_with_respect_to_the_losses(name: str) -> None:
    run = trained(name)
    layer, losses = leaves([0.7, 3.0, 0.2], torch.float64)
    balancer = build(name, layer)
    balancer.load_state_dict(run.balancer.state_dict())
    balancer({t: loss for t, loss in losses.items() if t != "c"}).backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[:2, 0], balancer.weights[:2].double(), rtol=1e-6, atol=1e-12)
    assert layer.weight.grad[2] == 0, "a task that is absent"


@every
def test_terms_are_the_loss_task_by_task(name: str) -> None:
    found = []
    for form in ("forward", "weighted"):
        run = trained(name)
        run.optimizer.zero_grad()
        losses = run.net.losses([run.net.features(9)] * 3, 9)
        if form == "forward":
            total = run.balancer(losses)
            total.backward()
        else:
            terms = run.balancer.weighted(losses)
            assert tuple(terms) == TASKS
            for term in terms.values():
                term.backward(retain_graph=True)
            total = torch.stack(list(terms.values())).sum()
        parameters = [*run.net.parameters(), *run.balancer.parameters()]
        found.append((total.detach(), [p.grad for p in parameters]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


@every
@pytest.mark.parametrize("quiet", ["eval", "no_grad"])
def test_eval_leaves_the_state_alone(name: str, quiet: str) -> None:
    run = trained(name)
    before = copy.deepcopy(run.balancer.state_dict())
    losses = run.net.losses([run.net.features(9)] * 3, 9)
    if quiet == "eval":
        run.balancer.eval()
        totals = [run.balancer(losses) for _ in range(2)]
    else:
        with torch.no_grad():
            totals = [run.balancer(losses) for _ in range(2)]
    assert same(run.balancer.state_dict(), before)
    assert totals[0].isfinite()
    assert torch.equal(*totals)
    assert totals[0].requires_grad == (quiet == "eval")


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_in_16_bits_are_balanced_in_float32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    found = []
    for kind in (dtype, torch.float32):
        layer, losses = leaves([0.7, 3.0, 0.2], dtype)
        balancer = build(name, layer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            total = balancer({t: loss.to(kind) for t, loss in losses.items()})
        total.backward()
        assert total.dtype == torch.float32
        found.append((total.detach(), layer.weight.grad))
    assert same(*found)


@every
def test_nothing_waits_for_the_device(name: str) -> None:
    """On the meta device there is no value to read. State follows the losses at first; then no number comes from the host."""
    layer = nn.Linear(3, 3, device="meta")
    balancer = build(name, layer)
    if "learned" in gs.balancers()[name].properties:
        balancer.to("meta")
    for step in range(4):
        losses: list[Tensor | None] = list(layer(torch.randn(2, 3, device="meta")).square().mean(0))
        if step in (1, 3):
            losses[1] = None
        with NoHostCopies() if step else nullcontext():
            total = balancer(losses)
            assert total.device.type == "meta"
            total.backward()
            for after in {"update", "end_epoch"} & set(dir(balancer)):
                getattr(balancer, after)(*[losses] * (after == "update"))
            assert balancer.weights.device.type == "meta"


@pytest.mark.slow
@every
def test_compiles_to_the_same_bits(name: str) -> None:
    """Without a break in the graph where the balancer does not differentiate in its forward pass."""
    spec = gs.balancers()[name]
    torch._dynamo.reset()
    layer = nn.Linear(3, 3)
    eager = build(name, layer)
    balancer = copy.deepcopy(eager) if "reads_gradients" not in spec.properties else build(name, layer)
    compiled = torch.compile(balancer, backend="eager", fullgraph="reads_gradients" not in spec.properties)
    for step in range(4):
        losses = list(layer(torch.randn(2, 3, generator=torch.Generator().manual_seed(step))).square().mean(0))
        found, expected = compiled(losses), eager(losses)
        assert same(found.detach(), expected.detach())
        found.backward(retain_graph=True)
        for each in (balancer, eager):
            if "updates_after_step" in spec.properties:
                each.update([loss * (1 - 0.1 * t) for t, loss in enumerate(losses)])
            if "counts_epochs" in spec.properties:
                each.end_epoch()
        assert same(balancer.state_dict(), eager.state_dict())


@every
def test_the_random_state_of_torch_is_left_alone(name: str) -> None:
    run = trained(name)
    before = torch.get_rng_state()
    run.step(5)
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_a_broken_loss_is_seen_and_does_not_break_the_balancer(name: str) -> None:
    run = trained(name)
    losses = run.net.losses([run.net.features(9)] * 3, 9)
    total = run.balancer({**losses, "b": losses["b"] * torch.nan})
    assert total.isnan()
    if "updates_after_step" in run.properties:
        run.balancer.update(losses)  # type: ignore[operator]
    if "counts_epochs" in run.properties:
        run.balancer.end_epoch()  # type: ignore[operator]
    assert run.step(10).isfinite()
    assert run.balancer.weights.isfinite().all()


@every
@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({"d": torch.tensor(1.0)}, ValueError, "losses: expected tasks among a, b, c, found d"),
        ([torch.tensor(1.0)], ValueError, r"losses: expected 3 \(a, b, c\), found 1"),
        ({"a": 1.0}, TypeError, "losses.'a'.: expected a scalar tensor, found float"),
        ({"a": torch.ones(3)}, TypeError, r"found shape \[3\]; reduce it"),
        ({}, ValueError, "expected the loss of at least one task, found none"),
        ([None, None, None], ValueError, "expected the loss of at least one task, found none"),
        (torch.tensor(1.0), TypeError, "losses: expected a dict by task or a sequence, found Tensor"),
    ],
)
def test_bad_losses(name: str, losses: Any, error: type[Exception], message: str) -> None:
    balancer = build(name, nn.Linear(2, 2))
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(error, match=message):
        balancer(losses)
    with pytest.raises(error, match=message):
        balancer.weighted(losses)
    assert same(balancer.state_dict(), before)


@every
def test_one_task_and_numbered_tasks(name: str) -> None:
    layer, losses = leaves([2.0, 1.0, 1.0])
    balancer = gs.balancers()[name].build(1, **({"layer": layer} if "reads_gradients" in gs.balancers()[name].properties else {}))
    assert balancer.tasks == ("0",)
    balancer([losses["a"]]).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[0, 0] > 0


# ---- the declared properties


@every
def test_learned_means_parameters(name: str) -> None:
    found = bool(list(build(name, nn.Linear(2, 2)).parameters()))
    assert found == ("learned" in gs.balancers()[name].properties)


@every
def test_what_a_loop_has_to_call_is_declared(name: str) -> None:
    spec = gs.balancers()[name]
    assert hasattr(spec.cls, "update") == ("updates_after_step" in spec.properties)
    assert hasattr(spec.cls, "end_epoch") == ("counts_epochs" in spec.properties)
    if "reads_gradients" in spec.properties:
        with pytest.raises(ValueError, match=r"exactly one of aggregator= .* and layer="):
            spec.build(TASKS)
        assert {"aggregator", "layer"} <= set(spec.options)
    else:
        spec.build(TASKS)


@every
def test_random_means_other_weights_at_every_call(name: str) -> None:
    layer, losses = leaves([0.7, 3.0, 0.2])
    balancer = build(name, layer)
    totals = []
    for _ in range(6):
        totals.append(balancer(losses).item())
        if "updates_after_step" in gs.balancers()[name].properties:
            balancer.update(losses)  # type: ignore[operator]
    assert (len(set(totals)) == 6) == ("random" in gs.balancers()[name].properties)


@pytest.mark.parametrize("name", [name for name in NAMES if "positive_losses" not in gs.balancers()[name].properties])
def test_without_positive_losses_a_negative_one_is_as_good_as_any(name: str) -> None:
    """A log-likelihood, for one. GradNorm's ratios L / L(0) are negative then, and no real power of them exists but whole ones."""
    layer, losses = leaves([0.7, -3.0, 0.2])
    balancer = build(name, layer, **({"alpha": 1.0} if name == "gradnorm" else {}))
    total = balancer(losses)
    total.backward()
    assert total.isfinite()
    assert layer.weight.grad is not None
    assert (layer.weight.grad > 0).all(), "every loss falls along minus its gradient"


def _weights_by_name(balancer: Balancer) -> dict[str, Tensor]:
    return dict(zip(balancer.tasks, balancer.weights, strict=True))


@with_property("permutation_equivariant")
def test_permutation_equivariant(name: str) -> None:
    one, other = Run(name), Run(name, tasks=("c", "a", "b"))
    for seed in range(6):
        one.step(seed)
        other.step(seed)
        torch.testing.assert_close(_weights_by_name(one.balancer), _weights_by_name(other.balancer), rtol=1e-4, atol=1e-7)


values = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)


def _together_and_alone(name: str) -> list[Any]:
    """The terms, and the state after them, of all losses at once and of one after another."""
    found = []
    for at_once in (True, False):
        run = trained(name)
        losses = run.net.losses([run.net.features(9)] * 3, 9)
        terms = run.balancer.weighted(losses) if at_once else {t: run.balancer.weighted({t: loss})[t] for t, loss in losses.items()}
        found.append((terms, run.balancer.state_dict()))
    return found


@with_property("separable")
def test_separable_terms_are_the_same_task_by_task(name: str) -> None:
    together, alone = _together_and_alone(name)
    assert same(together, alone)


@pytest.mark.parametrize("name", ["gls", "rlw"])
def test_others_are_not(name: str) -> None:
    together, alone = _together_and_alone(name)
    assert not same(together, alone)


@with_property("homogeneous")
@given(values=values, power=st.integers(-20, 20))
def test_homogeneous(name: str, values: list[float], power: int) -> None:
    found = []
    for scale in (1.0, 2.0**power):
        layer, losses = leaves([scale * value for value in values], torch.float64)
        balancer = build(name, layer)
        found.append(balancer(losses).item() / scale)
    assert found[1] == pytest.approx(found[0], rel=1e-12)


@with_property("scale_free")
@given(values=values, powers=st.lists(st.integers(-20, 20), min_size=3, max_size=3))
def test_scale_free(name: str, values: list[float], powers: list[int]) -> None:
    found = []
    for factors in (torch.ones(3), 2.0 ** torch.tensor(powers).double()):
        layer, losses = leaves((factors * torch.tensor(values, dtype=torch.float64)).tolist(), torch.float64)
        balancer = build(name, layer)
        balancer(losses)
        shares = balancer.weights * factors
        found.append(shares / shares.sum())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0.0)


@with_property("weights_sum_to_one")
def test_weights_sum_to_one(name: str) -> None:
    run = Run(name)
    for seed in range(6):
        run.step(seed)
        assert run.balancer.weights.sum().item() == pytest.approx(1.0, rel=1e-12)


@with_property("weights_sum_to_tasks")
def test_weights_sum_to_the_number_of_tasks(name: str) -> None:
    run = Run(name)
    for seed in range(6):
        run.step(seed)
        assert run.balancer.weights.sum().item() == pytest.approx(3.0, rel=1e-6)


def test_no_sum_is_left_undeclared() -> None:
    for name, spec in gs.balancers().items():
        total = trained(name, 5).balancer.weights.sum().item()
        assert (total == pytest.approx(1.0, rel=1e-6)) == ("weights_sum_to_one" in spec.properties), name
        if name != "constant":  # whose weights are the user's
            assert (total == pytest.approx(3.0, rel=1e-6)) == ("weights_sum_to_tasks" in spec.properties), name


def test_the_problem_is_what_it_says() -> None:
    losses = {t: v.item() for t, v in Net().losses([Net().features(0)] * 3, 0).items()}
    assert losses["b"] / losses["c"] > 20
    assert set(losses) == set(SCALES)
