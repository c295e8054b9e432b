"""The boundary of trunk and heads below the aggregator: what split and detach hand to surgery, and what they give back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradsurgery.capture.detach import Detached
from gradsurgery.capture.features import Features, passes_through
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.probe import is_probing, probing
from gradsurgery.capture.split import split


class Recorder:
    """Surgery that keeps what came, and answers with constants."""

    def __init__(self) -> None:
        self.calls: list[TaskGradients] = []

    def __call__(self, grads: TaskGradients) -> list[Tensor | None]:
        self.calls.append(grads)
        P = grads.pieces
        rows = [next((g for g in grads.entries[p::P] if g is not None), None) for p in range(P)]
        return [None if row is None else torch.full_like(row, 10.0 + p) for p, row in enumerate(rows)]


def tree() -> tuple[dict[str, Any], Tensor, Tensor]:
    fine, coarse = torch.randn(2, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    return {"fine": fine * 1, "mask": torch.ones(2), "levels": [coarse * 1, 7]}, fine, coarse


# --- features ---------------------------------------------------------------------------------------------------------------------


def test_only_differentiable_leaves_take_part() -> None:
    features, _, _ = tree()
    taken = Features.of(features, "split")
    assert [t.shape for t in taken.tensors] == [(2, 3), (4,)]
    rebuilt = taken.rebuild([torch.zeros(1), torch.ones(1)])
    assert rebuilt["mask"] is features["mask"]
    assert rebuilt["levels"][1] == 7
    assert [float(rebuilt["fine"]), float(rebuilt["levels"][0])] == [0.0, 1.0]
    assert Features.of(features["fine"], "split").rebuild([features["fine"]]) is features["fine"]


@pytest.mark.parametrize("features", [3, {}, [None, "x"], {"a": [1.0]}])
def test_features_without_a_tensor_are_refused(features: Any) -> None:
    with pytest.raises(TypeError, match=r"features: detach expected a tensor or a pytree of tensors, found \w+ without one"):
        Features.of(features, "detach")


def test_features_without_grad_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features: split expected features that require grad, found none: the trunk is frozen"):
        Features.of([torch.ones(2), torch.ones(3)], "split")


def test_when_features_pass_through() -> None:
    assert not passes_through(training=True)
    assert passes_through(training=False)
    with torch.no_grad():
        assert passes_through(training=True)


# --- split ------------------------------------------------------------------------------------------------------------------------


def test_split_hands_over_every_tasks_gradients_as_they_came() -> None:
    features, fine, coarse = tree()
    surgery = Recorder()
    views = split(Features.of(features, "split"), 3, surgery)
    assert len(views) == 3
    assert all(view["fine"].data_ptr() == features["fine"].data_ptr() for view in views), "views, no copies"
    (2 * views[0]["fine"].sum() + 3 * views[2]["fine"].sum() + 5 * views[2]["levels"][0].sum()).backward()
    (given,) = surgery.calls
    assert (given.tasks, given.pieces, given.stacked) == (3, 2, False)
    found = [None if g is None else (float(g.flatten()[0]), g.shape) for g in given.entries]
    assert found == [(2.0, (2, 3)), None, None, None, (3.0, (2, 3)), (5.0, (4,))], "an absent gradient stays None"
    assert fine.grad is not None
    assert coarse.grad is not None
    assert (fine.grad == 10).all()
    assert (coarse.grad == 11).all()


def test_losses_propagated_one_by_one_are_refused() -> None:
    features = torch.ones(3, requires_grad=True) * 1
    a, b, c = split(Features.of(features, "split"), 3, Recorder())
    (a.sum() + b.sum()).backward(retain_graph=True)
    (a.sum() + c.sum()).backward(retain_graph=True)  # the first task again: gradients met both times
    other, _ = split(Features.of(features, "split"), 2, Recorder())
    other.sum().backward(retain_graph=True)
    first, second = split(Features.of(features, "split"), 2, Recorder())
    first.sum().backward(retain_graph=True)
    with pytest.raises(
        RuntimeError, match=r"split: the tasks' losses were propagated one by one.*call backward\(\) once, or use detach"
    ):
        second.sum().backward()


def test_probing_sums_and_leaves_no_trace() -> None:
    features, fine, coarse = tree()
    surgery = Recorder()
    a, b = split(Features.of(features, "split"), 2, surgery)
    loss = 2 * a["fine"].sum() + 3 * b["fine"].sum()
    with probing():
        with probing():
            assert is_probing()
        assert is_probing(), "nested"
        found, unreached = torch.autograd.grad(loss, [fine, coarse], retain_graph=True, allow_unused=True)
        assert (found == 5).all()
        assert unreached is None
        for one in (a, b):  # one by one is fine here
            torch.autograd.grad(one["fine"].sum(), fine, retain_graph=True)
    assert not is_probing()
    assert not surgery.calls
    loss.backward()
    assert len(surgery.calls) == 1


def test_probing_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), probing():
        raise ZeroDivisionError
    assert not is_probing()


# --- detach -----------------------------------------------------------------------------------------------------------------------


def test_every_backward_is_a_task_of_its_own() -> None:
    features, fine, _ = tree()
    detached = Detached(Features.of(features, "detach"))
    z = detached.tree
    assert z["mask"] is features["mask"]
    assert z["fine"].data_ptr() == features["fine"].data_ptr()
    (2 * z["fine"].sum()).backward()
    (3 * z["fine"].sum() + 4 * z["levels"][0].sum()).backward()
    rows = list(detached.unnamed.values())
    assert [[None if g is None else float(g.flatten()[0]) for g in row] for row in rows] == [[2.0, None], [3.0, 4.0]]
    assert z["fine"].grad is None, "nothing adds up between tasks"
    assert fine.grad is None, "nothing reached the trunk"


def test_backwards_under_one_name_add_up() -> None:
    z0 = torch.ones(3, requires_grad=True) * 1
    detached = Detached(Features.of(z0, "detach"))
    detached.name = "seg"
    for factor in (2.0, 5.0):
        (factor * detached.tree.sum()).backward()
    detached.name = "depth"
    detached.tree.sum().backward()
    assert {name: float(g[0]) for name, (g,) in detached.named.items() if g is not None} == {"seg": 7.0, "depth": 1.0}
    assert not detached.unnamed
    detached.release()
    assert not detached.named
    assert not detached.leaves
