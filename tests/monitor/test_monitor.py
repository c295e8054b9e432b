"""``Monitor``: training is the same with it, and its rows are what happened."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monitor.problem import TASKS, Losses, Net, batch, numbers, state, table, train
from torch import Tensor

import gradsurgery as gs


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
@pytest.mark.parametrize(("form", "every"), [("split", 1), ("detach", 1), ("parameters", 1), ("split", 2), ("parameters", 2)])
def test_parameters_are_the_same_bits(tmp_path: Path, form: str, every: int, balanced: bool) -> None:
    """With and without, after 50 steps with dropout; also the random state, and the balancer."""

    def run(watched: bool) -> tuple[list[Tensor], Tensor]:
        net, surgery = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS, every=every)
        balancer = gs.UncertaintyWeighting(TASKS) if balanced else None
        if balancer is not None:
            net.optimizer.add_param_group({"params": list(balancer.parameters())})
        after: Callable[[int, Losses], None] = lambda step, losses: None  # noqa: E731
        if watched:
            folder = tmp_path / "run"
            sinks = (folder, gs.TensorBoardSink(folder / "tensorboard"), lambda step, values: None)
            monitor = gs.Monitor(surgery, *sinks, balancer=balancer, read_every=7, capacity=5)
            after = lambda step, losses: monitor.log({"lr": 0.01, "total": sum(losses.values())})  # noqa: E731
        train(net, surgery, form, 50, after, balancer)
        if watched:
            monitor.close()
            assert len(table(folder / "log.csv")) == 50
        found = state(net) + ([] if balancer is None else state(balancer))
        return found, torch.get_rng_state()

    (plain, random), (watched, random_watched) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(random, random_watched)


def test_the_same_bits_under_a_gradient_scaler(tmp_path: Path) -> None:
    def run(folder: Path | None) -> list[Tensor]:
        net, surgery = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5)
        if folder is not None:
            gs.Monitor(surgery, folder, read_every=7)
        for step in range(30):
            torch.manual_seed(step)
            net.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                x, y = batch(step)
                views = surgery.split(net.trunk(x))
                losses = surgery.observe({task: net.loss(task, z, y) for task, z in zip(TASKS, views, strict=True)})
            total = torch.stack(list(losses.values())).sum()
            scaler.scale(total * math.inf if step % 9 == 4 else total).backward()
            scaler.step(net.optimizer)
            scaler.update()
        return state(net)

    for plain, watched in zip(run(None), run(tmp_path / "run"), strict=True):
        assert torch.equal(plain, watched)
    gc.collect()  # nobody holds the monitor but the aggregator
    rows = table(tmp_path / "run" / "log.csv")
    assert len(rows) == 30
    assert [int(row["step"]) for row in rows if float(row["nonfinite"])] == [4, 13, 22]
    assert [row["step"] for row in rows if math.isnan(float(row["norm"]))] == [
        row["step"] for row in rows if float(row["nonfinite"])
    ]


@pytest.mark.parametrize("tasks", [2, 3])
def test_observing_is_the_plain_loop(tmp_path: Path, tasks: int) -> None:
    """``"sum"`` through split beside a loop without aggregator: the same bits for two tasks, to the rounding of a sum for more."""
    names = TASKS[:tasks]
    observed, plain = Net(names), Net(names)
    surgery = gs.GradientAggregator("sum", tasks=names)
    with gs.Monitor(surgery, tmp_path, read_every=7):
        train(observed, surgery, "split", 50)
    for step in range(50):
        torch.manual_seed(step)
        plain.optimizer.zero_grad()
        x, y = batch(step)
        z = plain.trunk(x)
        torch.stack([plain.loss(task, z, y) for task in names]).sum().backward()
        plain.optimizer.step()
    for p, q in zip(observed.parameters(), plain.parameters(), strict=True):
        if tasks == 2:
            assert torch.equal(p, q)
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_rows_are_what_happened(tmp_path: Path) -> None:
    """In the ring, the folder, the function and TensorBoard: the same numbers, which read back exactly."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    net, surgery = Net(), gs.GradientAggregator("mgda", tasks=TASKS)
    balancer = gs.UncertaintyWeighting(TASKS, kinds=("classification", "regression", "regression"))
    heard: dict[int, dict[str, float]] = {}
    told: list[dict[str, float]] = []
    monitor = gs.Monitor(
        surgery, tmp_path, gs.TensorBoardSink(tmp_path / "curves"), heard.__setitem__, balancer=balancer, read_every=7
    )

    def after(step: int, losses: Losses) -> None:
        told.append({task: float(loss.detach()) for task, loss in losses.items()})
        with torch.no_grad():
            balancer.log_vars.add_(0.01)
        monitor.log({"lr": 0.1 / (step + 1), "score": torch.tensor(step, dtype=torch.int32)})
        if step == 9:
            monitor.log({"val/miou": 0.25})

    train(net, surgery, "split", 20, after, balancer)
    assert len(monitor.rows) in (14, 19)  # what is not read yet
    monitor.flush()
    assert [row.step for row in monitor.rows] == list(range(20))
    for row, step, losses in zip(monitor.rows, surgery.history, told, strict=True):
        v = row.values
        assert {name: v[name] for name in step.scalars()} == step.scalars()
        assert [v[f"loss/{task}"] for task in TASKS] == list(losses.values())
        variance = torch.tensor(0.0).add_(0.0)
        for _ in range(row.step):
            variance.add_(0.01)
        assert v["variance/depth"] == pytest.approx(math.exp(float(variance)))
        assert v["balance/seg"] == pytest.approx(math.exp(-float(variance)))
        assert v["balance/depth"] == pytest.approx(math.exp(-float(variance)) / 2)
        assert (v["lr"], v["score"]) == (0.1 / (row.step + 1), row.step)
        assert ("val/miou" in v) == (row.step == 9)
        norms = [s.norm for s in surgery.history[: row.step + 1]]
        assert v["norm_mean"] == pytest.approx(statistics.fmean(norms))
        assert v["norm_deviation"] == pytest.approx(statistics.pstdev(norms), abs=1e-12)
    assert heard == {row.step: row.values for row in monitor.rows}
    monitor.close()
    written = table(tmp_path / "log.csv")
    assert [int(row["step"]) for row in written] == list(range(20))
    for row, cells in zip(monitor.rows, written, strict=True):
        assert {name: float(cell) for name, cell in cells.items() if cell and name != "step"} == row.values
    columns = list(written[0])
    assert columns[:6] == ["step", "lr", *(f"loss/{task}" for task in TASKS), "balance/seg"]
    assert columns.index("cosine/seg-depth") < columns.index("conflicts") < columns.index("norm_mean") < columns.index("val/miou")
    curves = EventAccumulator(str(tmp_path / "curves"), size_guidance={"scalars": 0})
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == set(columns) - {"step"}
    for name in ("loss/seg", "norm", "cosine/seg-normal", "val/miou"):
        events = {event.step: event.value for event in curves.Scalars(name)}
        assert events == pytest.approx({row.step: row.values[name] for row in monitor.rows if name in row.values}, rel=1e-6)
    assert not (tmp_path / "layers.csv").exists()


def test_the_running_mean_is_over_the_last_100_steps() -> None:
    surgery = gs.GradientAggregator("sum", tasks=("a",))
    monitor = gs.Monitor(surgery, read_every=17)
    for step in range(250):
        x = torch.zeros(4, requires_grad=True)
        (z,) = surgery.split(x * 1)
        (z.sum() * (math.nan if step in (120, 249) else 1 + step % 13)).backward()
    monitor.flush()
    norms: list[float] = []
    for row in monitor.rows:
        norms += [row.values["norm"]] if math.isfinite(row.values["norm"]) else []
        assert row.values["norm_mean"] == pytest.approx(statistics.fmean(norms[-100:]), rel=1e-14)
        assert row.values["norm_deviation"] == pytest.approx(statistics.pstdev(norms[-100:]), rel=1e-12, abs=1e-14)
    assert len(norms) == 248


def test_broken_and_absent_tasks_are_counted(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("pcgrad")  # tasks become known as they appear
    monitor = gs.Monitor(surgery, tmp_path, read_every=4)
    for step in range(12):
        names = ["a"] if step < 3 else ["a", "b"] if step % 4 else ["b"]
        x = torch.zeros(4, requires_grad=True)
        views = surgery.split(x * 1, names)
        factors = [math.inf if (name, step) in (("b", 5), ("b", 6), ("a", 9)) else 1.0 for name in names]
        torch.stack([z.sum() * factor for z, factor in zip(views, factors, strict=True)]).sum().backward()
    monitor.close()
    assert monitor.counts == {"nonfinite": {"b": 2, "a": 1}, "absent": {"a": 2}}
    rows = table(tmp_path / "log.csv")
    assert list(rows[0])[1:6] == ["weight/a", "weight/b", "norm/a", "norm/b", "norm"]  # one came later
    assert [row["norm/b"] == "" for row in rows] == [True] * 3 + [False] * 9
    assert [row["absent"] for row in rows] == ["1.0" if step in (4, 8) else "0.0" for step in range(12)]
    assert [row["nonfinite"] for row in rows] == ["1.0" if step in (5, 6, 9) else "0.0" for step in range(12)]


def test_steps_without_k_have_rows(tmp_path: Path) -> None:
    """Coordinate-wise methods, weights that serve again, and a task that is alone."""
    for method, options, expected in (
        ("trimmed_mean", {}, {"absent", "loss/seg", "loss/depth", "loss/normal"}),
        ("pcgrad", {"every": 2}, {"absent", *(f"{kind}/{task}" for kind in ("loss", "weight") for task in TASKS)}),
    ):
        surgery = gs.GradientAggregator(method, tasks=TASKS, **options)  # type: ignore[arg-type]
        monitor = gs.Monitor(surgery)
        train(Net(), surgery, "split", 4)
        monitor.flush()
        assert len(monitor.rows) == 4
        assert set(monitor.rows[3].values) == expected
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery)
    net = Net()
    x, y = batch(0)
    surgery.backward({"depth": net.loss("depth", net.trunk(x), y)}, shared=net.trunk)
    monitor.flush()
    assert set(monitor.rows[0].values) == {"absent", "loss/depth", "weight/depth"}


def test_each_nth_step_and_what_is_logged_between(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path, every=4, read_every=2)
    monitor.log({"before": 1})
    train(Net(), surgery, "split", 11, lambda step, losses: monitor.log({"val": step}) if step in (4, 6, 10) else None)
    monitor.close()
    assert [(row.step, row.values.get("val")) for row in monitor.rows] == [(0, None), (4, 4), (6, 6), (8, None), (10, 10)]
    assert monitor.rows[0].values["before"] == 1
    assert "norm" not in monitor.rows[2].values
    assert [row["step"] for row in table(tmp_path / "log.csv")] == ["0", "4", "6", "8", "10"]


def test_what_is_logged_after_a_flush_joins_the_row(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path, gs.TensorBoardSink(tmp_path / "curves"))
    train(Net(), surgery, "split", 3)
    monitor.flush()
    monitor.log({"val": 0.5})
    train(Net(), surgery, "split", range(3, 5))
    monitor.close()
    rows = table(tmp_path / "log.csv")
    assert [(row["step"], row["val"]) for row in rows] == [("0", ""), ("1", ""), ("2", "0.5"), ("3", ""), ("4", "")]
    assert all(row["norm"] for row in rows)
    assert [row.step for row in monitor.rows] == list(range(5))
    assert monitor.rows[4].values["norm_mean"] == pytest.approx(statistics.fmean(s.norm for s in surgery.history))


def test_layers(tmp_path: Path) -> None:
    """Against means over the statistics' own Gram matrices, window by window; a task is absent now and then."""
    net, surgery = Net(dropout=0.0), gs.GradientAggregator("pcgrad", tasks=TASKS, group_by="layer")
    with gs.Monitor(surgery, tmp_path, read_every=7) as monitor:
        for step in range(17):
            x, y = batch(step)
            z = net.trunk(x)
            losses = {task: net.loss(task, z, y) for task in TASKS if step % 3 or task != "seg"}
            surgery.backward(losses, shared=net.trunk)
        assert monitor.rows[0].layers is not None
    rows = table(tmp_path / "layers.csv")
    assert [(row["step"], row["steps"], row["layer"]) for row in rows] == [
        (step, steps, layer) for step, steps in (("6", "7"), ("13", "7"), ("16", "3")) for layer in ("0", "3")
    ]
    for row in rows:
        last, count, g = int(row["step"]), int(row["steps"]), ("0", "3").index(row["layer"])
        window = surgery.history[last + 1 - count : last + 1]
        for t, task in enumerate(TASKS):
            here = [s for s in window if s.present[t]]
            assert float(row[f"norm/{task}"]) == pytest.approx(statistics.fmean(float(s.group_norms[g, t]) for s in here))
            assert float(row[f"weight/{task}"]) == pytest.approx(statistics.fmean(float(s.weights[g, t]) for s in here))
            for u in range(t + 1, 3):
                both = [s for s in here if s.present[u]]
                pair = f"{task}-{TASKS[u]}"
                cosines = [float(s.group_cosines[g, t, u]) for s in both]
                assert float(row[f"cosine/{pair}"]) == pytest.approx(statistics.fmean(cosines))
                assert float(row[f"conflict_rate/{pair}"]) == pytest.approx(sum(c < 0 for c in cosines) / len(both))


def test_layers_of_windows_that_a_flush_ended(tmp_path: Path) -> None:
    """What is logged afterwards belongs to the row of a step whose layers are written already."""
    net, surgery = Net(dropout=0.0), gs.GradientAggregator("pcgrad", tasks=TASKS, group_by="layer")
    with gs.Monitor(surgery, tmp_path, read_every=5) as monitor:
        train(net, surgery, "parameters", 3)
        monitor.flush()
        monitor.log({"val": 1.0})
        train(net, surgery, "parameters", range(3, 7))
        monitor.flush()
        monitor.log({"val": 2.0})
    rows = table(tmp_path / "layers.csv")
    assert [(row["step"], row["steps"]) for row in rows if row["layer"] == "0"] == [("2", "3"), ("6", "4")]
    assert [row["val"] for row in table(tmp_path / "log.csv")] == ["", "", "1.0", "", "", "", "2.0"]
    assert all(row.layers is not None for row in monitor.rows)


def test_samples_are_no_layers(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, group_by="sample")
    with gs.Monitor(surgery, tmp_path) as monitor:
        train(Net(), surgery, "split", 3)
    assert all(row.layers is None for row in monitor.rows)
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "config.json"}
    assert numbers(tmp_path / "log.csv", "norm/seg") == [pytest.approx(n) for n in (row.values["norm/seg"] for row in monitor.rows)]
