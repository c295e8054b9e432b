"""CR-MOGM: the average of any method's weights, step by step, and its memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.methods import Step, build

G = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # [steps, T, N]


def take(surgery: gs.GradientAggregator, rows: Sequence[Tensor | None]) -> Tensor:
    """One step on given gradients, None for an absent task -> the weights. [T]"""
    x = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    views = surgery.split(x * 1, 3)
    torch.stack([(view * row).sum() for view, row in zip(views, rows, strict=True) if row is not None]).sum().backward()
    assert surgery.weights is not None
    return surgery.weights.clone()


def plain(method: str, **options: Any) -> list[Tensor]:
    """The inner method's own weights in every step."""
    surgery = gs.GradientAggregator(method, **options)
    return [take(surgery, rows) for rows in G]


@pytest.mark.parametrize(("inner", "options"), [("imtlg", {}), ("pcgrad", {"seed": 2}), ("random", {"seed": 2}), ("config", {})])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_an_average_that_begins_with_the_first_weights(inner: str, options: dict[str, Any], alpha: float) -> None:
    surgery = gs.GradientAggregator("crmogm", inner=inner, alpha=alpha, **options)
    expected = None
    for rows, w in zip(G, plain(inner, **options), strict=True):
        expected = w if expected is None else alpha * expected + (1 - alpha) * w
        torch.testing.assert_close(take(surgery, rows), expected, rtol=1e-14, atol=1e-14)


def test_initial_weights_are_smoothed_too() -> None:
    first = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for given in (first, first.tolist()):
        surgery = gs.GradientAggregator("crmogm", inner="imtlg", alpha=0.75, initial_weights=given)
        expected = first
        for rows, w in zip(G, plain("imtlg"), strict=True):
            expected = 0.75 * expected + 0.25 * w
            torch.testing.assert_close(take(surgery, rows), expected, rtol=1e-14, atol=1e-14)
    K = gs.gram(G[0])
    torch.testing.assert_close(
        gs.weights(K, "crmogm", inner="imtlg", alpha=0.75, initial_weights=first), 0.75 * first + 0.25 * gs.weights(K, "imtlg")
    )


def test_the_combination_is_with_the_averaged_weights() -> None:
    surgery = gs.GradientAggregator("crmogm", inner="imtlg")
    for rows in G:
        x = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        views = surgery.split(x * 1, 3)
        torch.stack([(view * row).sum() for view, row in zip(views, rows, strict=True)]).sum().backward()
        assert x.grad is not None
        assert surgery.weights is not None
        torch.testing.assert_close(x.grad, surgery.weights @ rows)
    status = surgery.statistics().status
    assert status is not None
    assert (status.converged, status.rank) == (True, 3), "the inner method's"


def test_an_absent_task_keeps_its_average_and_begins_when_it_comes() -> None:
    surgery = gs.GradientAggregator("crmogm", inner="constant", alpha=0.5, weights=[1.0, 2.0, 4.0])
    rows = list(G[0])
    assert take(surgery, [rows[0], None, rows[2]]).tolist() == [1.0, 0.0, 4.0]
    assert surgery.state_dict()["begun"].tolist() == [[True, False, True]]
    shifted = gs.GradientAggregator("crmogm", inner="constant", alpha=0.5, weights=[3.0, 6.0, 8.0])
    shifted.load_state_dict(surgery.state_dict())
    assert take(shifted, [rows[0], rows[1], None]).tolist() == [2.0, 6.0, 0.0]
    assert take(shifted, rows).tolist() == [2.5, 6.0, 6.0]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    surgery = gs.GradientAggregator("crmogm", inner="pcgrad", seed=1)
    take(surgery, list(G[0]))
    before = copy.deepcopy(surgery.state_dict())
    broken = G[1].clone()
    broken[1, 0] = torch.inf
    assert take(surgery, list(broken)).isnan().all()
    for name, tensor in before.items():
        if isinstance(tensor, Tensor):
            assert torch.equal(surgery.state_dict()[name], tensor), name


def test_resumes_to_the_same_bits() -> None:
    whole = gs.GradientAggregator("crmogm", inner="pcgrad", seed=1)
    expected = [take(whole, list(rows)) for rows in G]
    first = gs.GradientAggregator("crmogm", inner="pcgrad", seed=1)
    for rows in G[:5]:
        take(first, list(rows))
    assert {"average", "begun", "inner_key"} <= set(first.state_dict())
    second = gs.GradientAggregator("crmogm", inner="pcgrad", seed=8)
    second.load_state_dict(first.state_dict())
    for rows, w in zip(G[5:], expected[5:], strict=True):
        assert torch.equal(take(second, list(rows)), w)


def test_a_new_task_grows_the_memory() -> None:
    surgery = gs.GradientAggregator("crmogm", inner="imtlg", alpha=0.5)
    for tasks in (2, 3):
        x = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        views = surgery.split(x * 1, [str(t) for t in range(tasks)])
        torch.stack([(view * row).sum() for view, row in zip(views, G[0], strict=False)]).sum().backward()
    two, three = (gs.weights(gs.gram(G[0, :tasks]), "imtlg") for tasks in (2, 3))
    expected = torch.cat([0.5 * two + 0.5 * three[:2], three[2:]])
    torch.testing.assert_close(surgery.weights, expected)


def test_without_memory_it_is_the_inner_method() -> None:
    K = gs.gram(G[0])
    assert torch.equal(gs.weights(K, "crmogm", inner="imtlg"), gs.weights(K, "imtlg"))
    grouped = torch.stack([K, 2 * K])
    assert torch.equal(gs.weights(grouped, "crmogm", inner="imtlg"), gs.weights(grouped, "imtlg"))


def test_groups_have_averages_of_their_own() -> None:
    method = build("crmogm", inner="imtlg", alpha=0.5)
    grads = TaskGradients.of([[row[:4], row[4:]] for row in G[0]])
    state = method.initial_state() | method.task_state(grads, groups=2)
    expected = None
    for rows in G[:4]:
        out = [torch.empty(4, dtype=torch.float64) for _ in range(2)]
        given = TaskGradients.of([[row[:4], row[4:]] for row in rows])
        w = method.surgery_(out, given, Step(state), groups=(0, 1)).weights
        fresh = torch.stack([gs.weights(gs.gram(part), "imtlg") for part in rows.split(4, dim=1)])
        expected = fresh if expected is None else 0.5 * expected + 0.5 * fresh
        torch.testing.assert_close(w, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out, [v @ part for v, part in zip(w, rows.split(4, dim=1), strict=True)])


def test_options_reach_the_inner_method() -> None:
    by_name = build("crmogm", inner="alignedmtl", alpha=0.5, scale_mode="rmse")
    by_method = build("crmogm", inner=build("alignedmtl", scale_mode="rmse"), alpha=0.5)
    K = gs.gram(G[0])
    expected = gs.weights(K, "alignedmtl", scale_mode="rmse")
    assert torch.equal(gs.weights(K, by_name), expected)
    assert torch.equal(gs.weights(K, by_method), expected)
    assert "scale_mode='rmse'" in repr(gs.GradientAggregator(by_name))


def test_what_the_documentation_says_of_colliding_names_holds() -> None:
    (said,) = re.findall(r"``inner=(gradsurgery\.methods.*?)``", gs.methods()["crmogm"].cls.__doc__ or "")
    inner = eval(said, {"gradsurgery": gs})
    assert (inner.spec.name, inner.alpha) == ("fairgrad", 2.0)
    K = gs.gram(G[0])
    assert torch.equal(gs.weights(K, "crmogm", inner=inner, alpha=0.5), gs.weights(K, "fairgrad", alpha=2.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner": "nosuch"}, ValueError, "^inner: expected one of .*, found 'nosuch'"),
        ({"inner": 3}, TypeError, "inner: expected a method's name or a built method, found 3"),
        ({"inner": "crmogm"}, ValueError, "inner: expected a method that finds weights from K, found 'crmogm'"),
        ({"alpha": 1.5}, ValueError, "alpha: expected a finite number >= 0 and <= 1, found 1.5"),
        ({"alpha": "a"}, TypeError, "alpha: expected a number, found str"),
        ({"inner": ["mgda"]}, TypeError, r"^inner: expected a method's name or a built method, found \['mgda'\]"),
        ({"inner": "fairgrad", "alpha": 1.0, "max_norm": 1}, TypeError, "^inner: method 'fairgrad' has no option 'max_norm'"),
        ({"inner": "krum", "n_byzantine": -1}, ValueError, "^inner: n_byzantine: expected an integer"),
        ({"inner": "imtlg", "power": 2}, TypeError, "^inner: method 'imtlg' has no option 'power'; it takes no options"),
        ({"inner": build("imtlg"), "power": 2}, TypeError, r"^inner: options \['power'\] cannot change the given IMTLG"),
        ({"initial_weights": [1.0]}, ValueError, "initial_weights: expected 3 numbers, one a task, found 1"),
        ({"initial_weights": "a"}, TypeError, "initial_weights: expected a tensor"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(gs.gram(G[0]), "crmogm", **options)
