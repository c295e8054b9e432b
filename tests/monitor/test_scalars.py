"""Rows of many steps at once against one by one, and against the definitions on full vectors in float64."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.monitor import Statistics
from gradsurgery.monitor.scalars import scalars

TASKS = ("a", "b-c", "d")


def take(surgery: gs.GradientAggregator, rows: dict[str, Tensor], losses: dict[str, float] | None = None) -> Tensor:
    """One step on given gradients, by task; absent ones are left out."""
    x = torch.zeros(next(iter(rows.values())).shape, dtype=torch.float64, requires_grad=True)
    views = surgery.split(x * 1, list(rows))
    if losses is not None:
        surgery.observe({task: torch.tensor(loss) for task, loss in losses.items()})
    torch.stack([(z * row).sum() for z, row in zip(views, rows.values(), strict=True)]).sum().backward()
    assert x.grad is not None
    return x.grad


def steps(method: str, **options: object) -> tuple[gs.GradientAggregator, list[dict[str, Tensor]], list[Tensor]]:
    """With all tasks, with some absent, with a zero, with a broken one."""
    surgery = gs.GradientAggregator(method, tasks=TASKS, **options)
    generator = torch.Generator().manual_seed(1)
    given, results = [], []
    for s in range(24):
        rows = {task: torch.randn(9, generator=generator, dtype=torch.float64) for task in TASKS}
        if s % 5 == 1:
            del rows[TASKS[s % 3]]
        if s % 7 == 2:
            rows[next(iter(rows))].zero_()
        if s % 11 == 3:
            rows[list(rows)[-1]][0] = math.nan
        given.append(rows)
        tells = s % 2 or "losses" in surgery.method.needs
        results.append(take(surgery, rows, {task: float(s + t) for t, task in enumerate(rows)} if tells else None))
    return surgery, given, results


@pytest.mark.parametrize("method", ["pcgrad", "sum", "mgda", "cagrad", "config", "graddrop", "moco", "imtlg"])
def test_many_at_once_are_each_by_itself(method: str) -> None:
    surgery, _, _ = steps(method)
    once = scalars(surgery.history)
    for step, found in zip(surgery.history, once, strict=True):
        alone = step.scalars()
        assert list(found) == list(alone)
        for name, value in alone.items():
            assert type(found[name]) is float
            assert found[name] == value or (math.isnan(value) and math.isnan(found[name])), (step.step, name)
    assert scalars([]) == []


def test_against_full_vectors() -> None:
    surgery, given, results = steps("pcgrad", order="ascending")
    for step, rows, out in zip(surgery.history, given, results, strict=True):
        values = step.scalars()
        assert values["absent"] == step.absent == 3 - len(rows)
        broken = [task for task, row in rows.items() if not row.isfinite().all()]
        assert step.nonfinite_tasks == tuple(broken)
        assert values["nonfinite"] == bool(broken)
        conflicts = sum(float(rows[i] @ rows[j]) < 0 for i, j in combinations(rows, 2))
        assert values["conflicts"] == conflicts
        assert values["conflict_rate"] == pytest.approx(conflicts / max(1, math.comb(len(rows), 2)))
        for task in TASKS:
            assert (f"norm/{task}" in values) == (f"weight/{task}" in values) == (task in rows)
        for task, row in rows.items():
            assert values[f"norm/{task}"] == pytest.approx(float(row.norm()), rel=1e-14, nan_ok=True)
        for i, j in combinations(rows, 2):
            expected = float(rows[i] @ rows[j]) / float(rows[i].norm() * rows[j].norm() or math.nan)
            assert values[f"cosine/{i}-{j}"] == pytest.approx(expected, abs=1e-14, nan_ok=True)
        assert values["norm"] == pytest.approx(float(out.norm()), rel=1e-12, nan_ok=True)
        told = {task: float(step.step + t) for t, task in enumerate(rows)} if step.step % 2 else {}
        assert {name: value for name, value in values.items() if name.startswith("loss/")} == {
            f"loss/{task}": loss for task, loss in told.items()
        }
        torch.testing.assert_close(
            step.losses, torch.tensor([told.get(task, math.nan) for task in TASKS], dtype=torch.float64), equal_nan=True
        )


def test_stationary_is_left_out_where_nobody_looked() -> None:
    def step(said: list[float]) -> Statistics:
        status = torch.tensor([said], dtype=torch.float64)
        return Statistics(0, ("a",), (True,), torch.ones(1, 1).double(), torch.ones(1).double(), status)

    found = scalars([step([1, 1, 2, 1]), step([1, -1, -1, 1]), step([0, 0, 2, 1])])
    assert [values.get("stationary") for values in found] == [1.0, None, 0.0]
    assert [values["converged"] for values in found] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("group_by", ["tensor", "sample"])
def test_groups(group_by: str) -> None:
    surgery = gs.GradientAggregator("pcgrad", order="ascending", tasks=TASKS, group_by=group_by, history=8)
    for seed in range(3):
        G = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        leaves = [torch.zeros(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        views = surgery.split([leaf * 1 for leaf in leaves])
        torch.stack([(z[p] * G[t, p]).sum() for t, z in enumerate(views) for p in range(2)]).sum().backward()
        step = surgery.statistics()
        # [G, T, N]
        by_group = (G.transpose(0, 1) if group_by == "tensor" else G.permute(2, 0, 1, 3)).flatten(2)
        torch.testing.assert_close(step.group_norms, by_group.norm(dim=2))
        torch.testing.assert_close(step.group_cosines, torch.cosine_similarity(by_group[:, :, None], by_group[:, None], dim=3))
        products = by_group @ by_group.mT
        expected = [sum(float(K[i, j]) < 0 for i, j in combinations(range(3), 2)) for K in products]
        assert step.group_conflicts.tolist() == expected
        out = torch.stack([leaf.grad for leaf in leaves])  # type: ignore[misc]
        assert step.scalars()["norm"] == pytest.approx(float(out.norm()))
        assert scalars(surgery.history)[-1] == step.scalars()


def test_losses_are_those_that_were_told() -> None:
    """Not what becomes of them: a sum in place changes the tensor that was observed."""
    surgery = gs.GradientAggregator("sum", tasks=("a", "b"))
    x = torch.ones(3, requires_grad=True)
    a, b = (z.sum() for z in surgery.split(x * 1))
    surgery.observe({"a": a, "b": b})
    total = a
    total += b
    total.backward()
    assert surgery.statistics().losses.tolist() == [3.0, 3.0]
    assert not any(isinstance(loss, Tensor) and loss.requires_grad for loss in surgery.statistics()._losses)


def test_losses_of_every_way_through_parameter_space() -> None:
    """T passes, weights that serve again, one task alone, collected batches, total, low memory, and without K."""
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]

    def losses(seed: int, names: tuple[str, ...] = ("a", "b")) -> dict[str, Tensor]:
        z = trunk(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))
        return {name: head(z).square().mean() for name, head in zip(("a", "b"), heads, strict=True) if name in names}

    def told(surgery: gs.GradientAggregator) -> list[float]:
        return surgery.statistics().losses.tolist()

    def values(found: dict[str, Tensor]) -> list[float]:
        return [float(found[name]) if name in found else math.nan for name in ("a", "b")]

    for options in ({}, {"every": 3}, {"group_by": "layer"}):
        surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"), **options)  # type: ignore[arg-type]
        for seed in range(4):
            found = losses(seed)
            surgery.backward(found, shared=trunk)
            assert told(surgery) == values(found)
    surgery = gs.GradientAggregator("graddrop", tasks=("a", "b"))
    surgery.backward(found := losses(7), shared=trunk)
    assert told(surgery) == values(found)
    assert surgery.statistics().scalars() == {"absent": 0.0, "loss/a": told(surgery)[0], "loss/b": told(surgery)[1]}

    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"))
    surgery.backward(found := losses(1), shared=trunk, memory="low")
    assert told(surgery) == values(found)
    surgery.backward(found := losses(2, ("b",)), shared=trunk)
    assert told(surgery) == pytest.approx(values(found), nan_ok=True)
    assert surgery.statistics().scalars() == {"weight/b": 1.0, "absent": 1.0, "loss/b": told(surgery)[1]}
    surgery.total(found := losses(3), shared=trunk).backward()
    assert told(surgery) == values(found)
    first, second = losses(4), losses(5)
    surgery.collect(first, shared=trunk)
    surgery.backward(second, shared=trunk)
    assert told(surgery) == pytest.approx([x + y for x, y in zip(values(first), values(second), strict=True)])
    surgery.collect(found := losses(6, ("a",)), shared=trunk)
    surgery.backward()
    assert told(surgery) == pytest.approx(values(found), nan_ok=True)
    surgery.observe({"a": torch.tensor(10.0), "b": torch.tensor(20.0)})  # before weights of a balancer
    surgery.backward(losses(8), shared=trunk)
    assert told(surgery) == [10.0, 20.0]
    surgery.backward(found := losses(9), shared=trunk)
    assert told(surgery) == values(found)


def test_a_step_taken_back_is_told_to_nobody() -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"))
    heard: list[int] = []
    handle = surgery.register_statistics_hook(lambda step: heard.append(step.step))
    layer = torch.nn.Linear(3, 2)

    def losses() -> dict[str, Tensor]:
        z = layer(torch.ones(1, 3))
        return {"a": z.sum(), "b": -z.square().sum()}

    surgery.backward(losses(), shared=layer)
    broken = layer.register_forward_hook(lambda module, inputs, z: z.register_hook(_raise) and None)
    with pytest.raises(RuntimeError, match="planted"):
        surgery.backward(losses(), shared=layer)
    broken.remove()

    def fails_later() -> None:
        with surgery._undone_on_error():
            surgery._decide(torch.eye(2, dtype=torch.float64), ["a", "b"], [True, True])
            _raise()

    with pytest.raises(RuntimeError, match="planted"):
        fails_later()
    assert heard == [0]
    assert [step.step for step in surgery.history] == [0]
    surgery.backward(losses(), shared=layer)
    assert heard == [0, 1]
    handle.remove()
    surgery.backward(losses(), shared=layer)
    assert heard == [0, 1]


def test_an_error_of_a_listener_leaves_a_whole_step() -> None:
    for form in ("split", "parameters"):
        surgery = gs.GradientAggregator("pcgrad", tasks=("a", "b"))
        handle = surgery.register_statistics_hook(_raise)
        layer = torch.nn.Linear(3, 2)

        def step(surgery: gs.GradientAggregator = surgery, layer: torch.nn.Module = layer, form: str = form) -> None:
            z = layer(torch.ones(1, 3))
            a, b = surgery.split(z) if form == "split" else (z, z)
            losses = {"a": a.sum(), "b": -b.square().sum()}
            if form == "split":
                torch.stack(list(losses.values())).sum().backward()
            else:
                surgery.backward(losses, shared=layer)

        with pytest.raises(RuntimeError, match="planted"):
            step()
        handle.remove()
        step()
        assert [s.step for s in surgery.history] == [0, 1]
        assert int(surgery.key[1]) == 2  # drawn once a step


def _raise(*_: object) -> None:
    raise RuntimeError("planted")
