"""What a step of form C leaves behind: nothing of a failed one, no losses, and memory only as long as training goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from parameters.comparison import grads
from torch import Tensor, nn

import gradsurgery as gs


def network() -> tuple[nn.Sequential, nn.ModuleList]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    return trunk, nn.ModuleList([nn.Linear(6, 1) for _ in range(3)])


def losses(trunk: nn.Module, heads: nn.ModuleList) -> dict[str, Tensor]:
    z = trunk(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    return {name: (head(z) * (-1.0) ** k - k).square().mean() for k, (name, head) in enumerate(zip("abc", heads, strict=True))}


def test_losses_that_were_observed_serve_one_step_whether_it_operates_or_not() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("dbmtl", tasks=("a", "b", "c"))
    surgery.observe({"a": torch.tensor(100.0), "b": torch.tensor(0.001), "c": torch.tensor(1.0)})
    surgery.backward({"a": losses(trunk, heads)["a"]})
    surgery.backward(losses(trunk, heads))
    fresh = gs.GradientAggregator("dbmtl", tasks=("a", "b", "c"))
    fresh.backward(losses(trunk, heads))
    torch.testing.assert_close(surgery.weights, fresh.weights)


@pytest.mark.parametrize(("every", "memory", "passes"), [(1, "low", 3), (3, "full", 0)])
def test_a_step_that_fails_late_is_not_counted(every: int, memory: str, passes: int) -> None:
    """A hook raises in the pass that brings the result, after the weights were found."""
    trunk, heads = network()
    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b", "c"), every=every)
    surgery.backward(losses(trunk, heads))
    twin, kept, before = copy.deepcopy(surgery), grads(trunk), copy.deepcopy(surgery.state_dict())
    calls: list[int] = []

    def failing(g: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > passes:
            raise ArithmeticError("late")
        return g

    handle = trunk[0].weight.register_hook(failing)
    with pytest.raises(ArithmeticError, match="late"):
        surgery.backward(losses(trunk, heads), memory=memory)
    handle.remove()
    assert all(torch.equal(g, kept[name]) for name, g in grads(trunk).items())
    after = surgery.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before if isinstance(before[k], Tensor))
    assert str(after["_extra_state"]) == str(before["_extra_state"])
    assert len(surgery.history) == len(twin.history)
    for one in (surgery, twin):
        one.backward(losses(trunk, heads), memory=memory)
    assert torch.equal(surgery.weights, twin.weights)  # type: ignore[arg-type]


def test_a_hook_that_counts_gives_what_the_weights_were_found_for() -> None:
    trunk, heads = network()
    count = 0

    def growing(g: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return g * count

    trunk[4].weight.register_hook(growing)
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"))
    surgery.backward(losses(trunk, heads))
    norm = torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None]).norm()
    assert surgery.statistics().norm == pytest.approx(float(norm), rel=1e-5)


def test_a_sparse_and_a_dense_gradient_of_one_leaf() -> None:
    torch.manual_seed(0)
    e, t = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4)
    x = torch.tensor([1, 3])

    def both() -> list[Tensor]:
        h = t(torch.ones(2, 4))
        return [(e(x) * h).sum(), (h @ e.weight.t()).square().sum()]

    sum(both()).backward()  # type: ignore[union-attr]
    expected = e.weight.grad.to_dense().clone()  # type: ignore[union-attr]
    for group_by in (None, "tensor"):
        for collected in (False, True):
            e.weight.grad = None
            surgery = gs.GradientAggregator("pcgrad", tasks=2, group_by=group_by)
            named = list(t.named_parameters())
            if collected:
                surgery.collect([both()[0], None], shared=named)
                surgery.backward([None, both()[1]], shared=named)
            else:
                surgery.backward(both(), shared=named)
            assert e.weight.grad is not None
            torch.testing.assert_close(e.weight.grad.to_dense(), expected)


def test_gradients_of_another_type_than_their_parameter() -> None:
    trunk, heads = network()
    trunk.bfloat16()
    if not hasattr(trunk[0].weight, "grad_dtype"):
        pytest.skip("torch has no grad_dtype")
    for p in trunk.parameters():
        p.grad_dtype = torch.float32

    def found() -> dict[str, Tensor]:
        z = trunk(torch.ones(5, 4, dtype=torch.bfloat16)).float()
        return {name: (head(z) - k).square().mean() for k, (name, head) in enumerate(zip("abc", heads, strict=True))}

    for how in ({}, {"memory": "low"}, {"accumulate": False}):
        gs.GradientAggregator("sum", tasks=("a", "b", "c")).backward(found(), **how)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trunk.parameters())


def held(surgery: gs.GradientAggregator) -> int:
    return sum(g.numel() for gradients in surgery._spare._held.values() for g in gradients)


@pytest.mark.parametrize("way", ["eval", "reset", "one task", "low", "collect", "copy"])
def test_memory_is_held_while_steps_follow_each_other_and_no_longer(way: str) -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"))
    surgery.backward(losses(trunk, heads))
    assert 0 < held(surgery) <= 2 * sum(p.numel() for p in trunk.parameters())
    if way == "eval":
        surgery.eval()
    elif way == "reset":
        surgery.reset()
    elif way == "one task":
        surgery.backward({"a": losses(trunk, heads)["a"]})
    elif way == "low":
        surgery.backward(losses(trunk, heads), memory="low")
    elif way == "collect":
        surgery.collect(losses(trunk, heads))
        surgery.backward()
    else:
        surgery = copy.deepcopy(surgery)
    assert held(surgery) <= (2 * 8 * 6 * 3 if way == "low" else 0)


def test_weights_of_one_parameter_do_not_serve_another() -> None:
    """Groups are the parameters that this step reached."""
    torch.manual_seed(0)
    ps = nn.ParameterDict({k: nn.Parameter(torch.randn(3)) for k in "abcd"})
    surgery = gs.GradientAggregator("pcgrad", every=10, group_by="tensor")
    for keys in ("abc", "bc", "abcd"):
        z = torch.cat([ps[k] * torch.randn(3) for k in keys])
        surgery.backward([(z * torch.randn_like(z)).sum() for _ in range(2)], shared=ps)
        assert surgery.weights is not None
        assert surgery.weights.shape == (len(keys), 2)
        assert surgery.statistics().groups == tuple(keys)
        assert surgery.statistics().gram is not None, "found anew"


def test_weights_of_features_do_not_serve_parameters() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"), every=10)
    z = surgery.split(trunk(torch.ones(2, 4)))
    torch.stack([head(v).square().mean() for head, v in zip(heads, z, strict=True)]).sum().backward()
    before = surgery.weights
    surgery.backward(losses(trunk, heads))
    assert not torch.equal(surgery.weights, before)  # type: ignore[arg-type]


def test_a_state_without_kept_weights_leaves_none() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"), every=10)
    surgery.backward(losses(trunk, heads))
    old = surgery.weights
    surgery.load_state_dict(gs.GradientAggregator("cagrad", tasks=("a", "b", "c")).state_dict())
    with torch.no_grad():
        trunk[0].weight.mul_(3)
    surgery.backward(losses(trunk, heads))
    assert not torch.equal(surgery.weights, old)  # type: ignore[arg-type]


def test_inference_mode_is_refused() -> None:
    trunk, heads = network()
    found = losses(trunk, heads)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="backward: expected to be called outside"):
        gs.GradientAggregator("cagrad").backward(found)


def test_shared_parameters_outside_inputs_are_refused() -> None:
    trunk, heads = network()
    with pytest.raises(ValueError, match="shared: expected some of the parameters that inputs= names"):
        gs.GradientAggregator("cagrad").backward(losses(trunk, heads), shared=trunk, inputs=heads)


def test_total_checks_what_it_is_given_at_once() -> None:
    trunk, heads = network()
    with pytest.raises(TypeError, match="retain_graph: expected True or False"):
        gs.GradientAggregator("cagrad").total(losses(trunk, heads), retain_graph=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory: expected a method whose weights K alone decides"):
        gs.GradientAggregator("median").total(losses(trunk, heads), memory="low")


def test_statistics_of_a_step_with_one_task_are_its_own() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"))
    surgery.backward(losses(trunk, heads))
    surgery.backward({"b": losses(trunk, heads)["b"]})
    assert surgery.weights is not None
    assert surgery.weights.tolist() == [0.0, 1.0, 0.0]
    stats = surgery.statistics()
    assert (stats.step, stats.present) == (1, (False, True, False))
    with pytest.raises(RuntimeError, match=r"no K was computed in this step: .*one task was there alone"):
        _ = stats.norm
    surgery.backward(losses(trunk, heads))
    assert surgery.statistics().norm > 0


def test_a_total_is_propagated_once_unless_it_was_told() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"))
    total = surgery.total(losses(trunk, heads))
    total.backward(retain_graph=True)
    once = grads(trunk)
    with pytest.raises(RuntimeError, match="total: expected one backward pass, found another"):
        total.backward()
    assert all(torch.equal(g, once[name]) for name, g in grads(trunk).items())
    total = surgery.total(losses(trunk, heads), retain_graph=True, accumulate=False)
    for _ in range(2):
        total.backward(retain_graph=True)
        assert all(torch.equal(g, once[name]) for name, g in grads(trunk).items())


def test_what_total_gathers_is_not_waiting_for_backward() -> None:
    trunk, heads = network()
    surgery = gs.GradientAggregator("cagrad", tasks=("a", "b", "c"))
    surgery.total(losses(trunk, heads))
    with pytest.raises(RuntimeError, match=r"what total\(\) returned has a backward\(\) of its own"):
        surgery.backward()
