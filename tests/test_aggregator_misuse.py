"""What a user can do wrong with a GradientAggregator, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs


def detached(**options: Any) -> tuple[gs.GradientAggregator, Tensor]:
    surgery = gs.GradientAggregator("pcgrad", **options)
    return surgery, surgery.detach(torch.randn(2, 3, requires_grad=True) * 1)


def test_backward_twice() -> None:
    surgery, d = detached()
    d.sum().backward()
    surgery.backward()
    with pytest.raises(RuntimeError, match="backward: no detached features are waiting"):
        surgery.backward()


def test_backward_without_any_head() -> None:
    surgery, _ = detached()
    with pytest.raises(RuntimeError, match="no head's backward reached the detached features"):
        surgery.backward()


def test_forgotten_backward() -> None:
    surgery, d = detached()
    d.sum().backward()
    with pytest.raises(RuntimeError, match=r"an earlier detach\(\) still wait|features of an earlier detach\(\)"):
        surgery.detach(torch.randn(2, 3, requires_grad=True) * 1)
    surgery.reset()
    surgery.detach(torch.randn(2, 3, requires_grad=True) * 1)


def test_fewer_backwards_than_declared_tasks() -> None:
    surgery, d = detached(tasks=("a", "b"))
    d.sum().backward()
    with pytest.raises(RuntimeError, match=r"1 backward passes reached the features, and 2 tasks are declared"):
        surgery.backward()


def test_task_contexts_nest() -> None:
    surgery, d = detached(tasks=("a", "b"))
    with surgery.task("a"):
        with surgery.task("b"):
            d.sum().backward()
        (d * 2).sum().backward()
    surgery.backward()
    assert surgery.statistics().norms.tolist() == pytest.approx([2 * 6**0.5, 6**0.5])


def test_a_number_where_tasks_have_names() -> None:
    surgery = gs.GradientAggregator("pcgrad")
    x = torch.randn(2, 3, requires_grad=True)
    surgery.split(x * 1, ["seg"])
    with pytest.raises(ValueError, match="tasks: expected names, as seg are known by name; found the number 2"):
        surgery.split(x * 1, 2)


def test_loading_a_state_forgets_the_history() -> None:
    surgery = gs.GradientAggregator("sum")
    a, b = surgery.split(torch.randn(2, requires_grad=True) * 1, 2)
    (a.sum() + b.sum()).backward()
    surgery.load_state_dict(surgery.state_dict())
    assert not surgery.history


def test_named_beside_unnamed() -> None:
    surgery, d = detached(tasks=("a", "b"))
    with surgery.task("a"):
        d.sum().backward()
    d.sum().backward()
    with pytest.raises(RuntimeError, match="1 backward passes came without a name beside"):
        surgery.backward()


def test_losses_propagated_one_by_one_through_split() -> None:
    surgery = gs.GradientAggregator("pcgrad")
    a, b = surgery.split(torch.randn(2, 3, requires_grad=True) * 1, 2)
    a.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="propagated one by one"):
        b.sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # torch's own advice against create_graph=True there
@pytest.mark.parametrize(
    "propagate", [lambda loss, x: torch.autograd.grad(loss, x, create_graph=True), lambda loss, x: loss.backward(create_graph=True)]
)
def test_a_backward_pass_to_be_differentiated_is_refused(propagate: Callable[[Tensor, Tensor], Any]) -> None:
    """At once, and before a step is taken."""
    surgery = gs.GradientAggregator("pcgrad")
    x = torch.randn(2, 3, requires_grad=True)
    a, b = surgery.split(x.tanh(), 2)
    loss = (a.square() - b).sum()
    with pytest.raises(RuntimeError, match=r"split: create_graph=True asks for .* Call backward\(\) without it"):
        propagate(loss, x)
    assert not surgery.history
    assert x.grad is None


def test_gradient_penalties_that_do_not_cross_the_boundary() -> None:
    """On the heads' inputs, and on the trunk alone."""
    x = torch.randn(4, 3, requires_grad=True)
    surgery = gs.GradientAggregator("sum")
    results = []
    for split in (surgery.split, lambda h, tasks: (h,) * tasks):
        h = x.tanh() * x
        a, b = split(h, 2)
        (slope,) = torch.autograd.grad(a.pow(3).sum(), a, create_graph=True)
        (steepness,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        loss = a.pow(3).sum() + slope.square().sum() - b.sum() + steepness.square().sum()
        results.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*results)
    assert len(surgery.history) == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_is_no_differentiable_backward(use_reentrant: bool) -> None:
    surgery = gs.GradientAggregator("sum")
    x = torch.randn(4, 3, requires_grad=True)
    views = surgery.split(checkpoint(torch.tanh, x.sin(), use_reentrant=use_reentrant), 2)
    a, b = (checkpoint(torch.exp, z, use_reentrant=use_reentrant) for z in views)
    (a.sum() - 2 * b.sum()).backward()
    (expected,) = torch.autograd.grad(-x.sin().tanh().exp().sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert len(surgery.history) == 1


class Listening(gs.methods()["sum"].cls):  # type: ignore[misc]  # a class by its registry
    """The sum, which hears the losses of every step."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "heard", [])

    def surgery_(self, out: Any, grads: Any, step: Any, *args: Any) -> Any:
        self.heard.append(None if step.losses is None else step.losses.tolist())
        return super().surgery_(out, grads, step, *args)


def test_losses_are_of_one_step() -> None:
    """Whatever becomes of the step they were told for: taken, given up, or refused."""
    method = Listening()
    surgery = gs.GradientAggregator(method, tasks=2)
    grads = [torch.ones(3), torch.ones(3)]
    surgery.observe([torch.tensor(1.0), 2.0])  # type: ignore[type-var]
    surgery.aggregate(grads)
    surgery.aggregate(grads)
    surgery.observe([torch.tensor(1.0), torch.tensor(2.0)])
    surgery.detach(torch.randn(3, requires_grad=True) * 1)
    surgery.reset()
    surgery.aggregate(grads)
    surgery.aggregate(grads, [torch.tensor(3.0), None])
    surgery.aggregate(grads)
    assert method.heard == [[1.0, 2.0], None, None, [3.0, pytest.approx(float("nan"), nan_ok=True)], None]
    refused = gs.GradientAggregator("dbmtl", tasks=2)
    refused.aggregate(grads, [torch.tensor(1.0), torch.tensor(2.0)])
    with pytest.raises(ValueError, match="keeps buffers of the gradients' shape"):
        refused.aggregate([torch.ones(4), torch.ones(4)], [torch.tensor(1.0), torch.tensor(2.0)])
    with pytest.raises(ValueError, match="losses: method 'dbmtl' needs the tasks' losses, found none"):
        refused.aggregate(grads)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, x: s.split(x.detach()), ValueError, "features: split expected features that require grad"),
        (lambda s, x: s.detach(x.detach()), ValueError, "features: detach expected features that require grad"),
        (lambda s, x: s.split(x + 0j), TypeError, "features: split expected dense float64, .* found torch.complex64"),
        (
            lambda s, x: s.split(torch.arange(3)),
            TypeError,
            "features: split expected floating-point tensors, found only torch.int64",
        ),
        (lambda s, x: s.split("features"), TypeError, "features: split expected a tensor or a pytree"),
        (lambda s, x: s.split(x, 4), ValueError, r"tasks: expected 3 \(seg, depth, normal\), found 4"),
        (lambda s, x: s.split(x, ("seg", "edges")), ValueError, "tasks: expected one of seg, depth, normal, found 'edges'"),
        (lambda s, x: s.split(x, ("seg", "seg")), ValueError, "tasks: expected different names"),
        (lambda s, x: s.split(x, ()), ValueError, "tasks: expected at least one task"),
        (lambda s, x: s.split(x, "seg"), TypeError, "tasks: expected a number or a sequence of names"),
        (lambda s, x: s.task("edges").__enter__(), ValueError, "tasks: expected one of seg, depth, normal, found 'edges'"),
        (lambda s, x: s.task("seg").__enter__(), RuntimeError, "task: no detached features are waiting"),
        (lambda s, x: s.statistics(), RuntimeError, "statistics: no step of surgery has been taken"),
        (lambda s, x: gs.GradientAggregator("pcgrad").split(x), ValueError, "tasks: expected a number or names"),
        (lambda s, x: gs.GradientAggregator("pcgrad").split(x, 0), ValueError, r"\(T=0\)"),
        (lambda s, x: gs.GradientAggregator("pcgrad", tasks=()), ValueError, r"\(T=0\)"),
        (lambda s, x: gs.GradientAggregator("pcgrad", tasks=("a", 1)), TypeError, "names to be strings"),
        (lambda s, x: gs.GradientAggregator("pcgrad", history=0), ValueError, "history: expected an integer >= 1, found 0"),
        (lambda s, x: gs.GradientAggregator("pcgrad", history=True), TypeError, "history: expected an integer, found bool"),
        (lambda s, x: gs.GradientAggregator("nosuch"), ValueError, "method: expected one of .*pcgrad.*, found 'nosuch'"),
        (lambda s, x: gs.GradientAggregator("sum", order="random"), TypeError, "method 'sum' has no option 'order'"),
    ],
)
def test_errors_name_argument_expectation_and_finding(
    call: Callable[[gs.GradientAggregator, Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(gs.GradientAggregator("pcgrad", tasks=("seg", "depth", "normal")), torch.randn(2, 3, requires_grad=True) * 1)
