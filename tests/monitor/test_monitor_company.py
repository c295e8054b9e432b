"""A monitor beside threads, balancers, failing sinks, copies, compilers; and its misuse."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor.problem import TASKS, Net, batch, state, table, train
from torch import Tensor

import gradsurgery as gs
from gradsurgery.monitor.monitor import _monitors
from gradsurgery.monitor.rows import Row


def test_threads(tmp_path: Path) -> None:
    """One trains, another reads, logs and flushes."""
    net, surgery = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path, read_every=3, capacity=50)
    done, failures = threading.Event(), list[BaseException]()

    def other() -> None:
        try:
            k = 0
            while not done.is_set():
                k += 1
                steps = [row.step for row in monitor.rows]
                assert steps == sorted(set(steps))
                assert len(steps) <= 50
                monitor.log({"other": k})
                _ = monitor.counts
                if k % 5 == 0:
                    monitor.flush()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    train(net, surgery, "split", 120)
    done.set()
    thread.join()
    monitor.close()
    assert not failures
    assert [int(row["step"]) for row in table(tmp_path / "log.csv")] == list(range(120))


def test_what_is_kept_is_bounded() -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, history=1)
    monitor = gs.Monitor(surgery, read_every=5, capacity=12)
    seen = []
    train(Net(), surgery, "split", 60, lambda step, losses: seen.append((len(monitor._window.entries), len(monitor._in_flight))))
    assert max(entries for entries, _ in seen) <= 5
    assert max(flying for _, flying in seen) <= 2
    monitor.flush()
    assert [row.step for row in monitor.rows] == list(range(48, 60))


def test_a_failing_sink_is_dropped(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(step: int, values: dict[str, float]) -> None:
        calls.append(step)
        if step == 9:
            raise OSError("no space left")

    net, surgery = Net(), gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, failing, tmp_path, read_every=4)
    with pytest.warns(UserWarning, match=r"Monitor: failing failed and gets no more rows \(OSError: no space left\)") as told:
        train(net, surgery, "split", 20)
    monitor.close()
    assert len(told) == 1
    assert calls == list(range(10))
    assert len(monitor.rows) == len(table(tmp_path / "log.csv")) == 20
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path / "gone", read_every=4)
    train(net, surgery, "split", 3)
    (tmp_path / "gone").write_text("in the way")
    with pytest.warns(UserWarning, match="gone failed and gets no more rows"):
        monitor.flush()
    assert len(monitor.rows) == 3


def test_copies_and_pickles_of_a_watched_aggregator(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path)
    train(Net(), surgery, "split", 2)
    for twin in (copy.deepcopy(surgery), copy.copy(surgery), pickle.loads(pickle.dumps(surgery))):
        assert twin.statistics().losses.tolist() == surgery.statistics().losses.tolist()
        train(Net(), twin, "split", 3)
    assert len(surgery.history) == 2
    monitor.flush()
    assert len(monitor.rows) == 2
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Monitor: expected to stay in its process"):
            copied(monitor)
    monitor.close()


def test_two_monitors_of_one_aggregator(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    with gs.Monitor(surgery, tmp_path / "all"), gs.Monitor(surgery, tmp_path / "some", every=2):
        train(Net(), surgery, "split", 6)
    assert [len(table(tmp_path / name / "log.csv")) for name in ("all", "some")] == [6, 3]


def test_inside_a_compiled_function() -> None:
    torch.compiler.reset()
    net, surgery = Net(dropout=0.0), gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net.heads[task](z) for task, z in zip(TASKS, surgery.split(net.trunk(x)), strict=True))

    for step in range(3):
        x, _ = batch(step)
        losses = surgery.observe([out.square().mean() for out in forward(x)])
        sum(losses).backward()  # type: ignore[union-attr]
    monitor.flush()
    torch.compiler.reset()
    assert [row.step for row in monitor.rows] == [0, 1, 2]
    assert all({"norm/seg", "loss/normal", "cosine/seg-depth"} <= set(row.values) for row in monitor.rows)


def test_gradnorm_and_a_monitor_listen_side_by_side() -> None:
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    balancer = gs.GradNorm(TASKS, aggregator=surgery)
    monitor = gs.Monitor(surgery, balancer=balancer)
    net = Net()
    net.optimizer.add_param_group({"params": list(balancer.parameters())})
    train(net, surgery, "split", 5, balancer=balancer)
    monitor.flush()
    weights = [[row.values[f"balance/{task}"] for task in TASKS] for row in monitor.rows]
    assert weights[0] == [1.0, 1.0, 1.0]
    assert weights[4] != weights[0]
    assert all(sum(w) == pytest.approx(3) for w in weights)


@pytest.mark.parametrize("name", ["constant", "dwa", "famo", "gls", "imtll", "rlw", "stch", "uw", "uwso"])
def test_every_balancer(name: str) -> None:
    def run(watched: bool) -> tuple[list[Tensor], list[Row]]:
        surgery = gs.GradientAggregator("sum", tasks=TASKS)
        options = {"update_on_next_call": True} if name == "famo" else {}
        balancer = gs.balancers()[name].build(TASKS, **options)
        monitor = gs.Monitor(surgery, balancer=balancer) if watched else None
        net = Net()
        train(net, surgery, "split", 6, balancer=balancer)
        if monitor is not None:
            monitor.flush()
        return [*state(net), *balancer.state_dict().values()], [] if monitor is None else monitor.rows

    (plain, _), (watched, rows) = run(False), run(True)
    for a, b in zip(plain, watched, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b
    assert all({f"balance/{task}" for task in TASKS} <= set(row.values) for row in rows)


def test_two_monitors_of_one_folder_are_refused(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected a folder that no other monitor of this process writes to, found .*run"):
        gs.Monitor(surgery, tmp_path / "other", tmp_path / "elsewhere" / ".." / "run")
    monitor.close()
    monitor.close()
    with gs.Monitor(surgery, tmp_path / "run", tmp_path / "other"):
        pass
    assert not [m for m in _monitors if m is monitor]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("no aggregator",), {}, TypeError, "surgery: expected a GradientAggregator, found str"),
        ((3,), {}, TypeError, "sinks: expected a folder, a function of step and values, or an object .*; found int"),
        ((gs.TensorBoardSink,), {}, TypeError, "found the class TensorBoardSink"),
        ((), {"balancer": 1}, TypeError, "balancer: expected a Balancer, found int"),
        ((), {"every": 0}, ValueError, "every: expected an integer >= 1, found 0"),
        ((), {"read_every": 1.5}, TypeError, "read_every: expected an integer, found float"),
        ((), {"capacity": -1}, ValueError, "capacity: expected an integer >= 1, found -1"),
    ],
)
def test_arguments(arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    surgery: Any = gs.GradientAggregator("sum")
    if arguments == ("no aggregator",):
        surgery, arguments = "no aggregator", ()
    with pytest.raises(error, match=message):
        gs.Monitor(surgery, *arguments, **options)
    gc.collect()


def test_what_is_no_value_is_refused(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum")
    monitor = gs.Monitor(surgery)
    for value, found in (
        (torch.ones(2), r"a torch.float32 tensor of shape \[2\]"),
        (torch.tensor(1j), r"a torch.complex64 tensor of shape \[\]"),
        ("1", "str"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=rf"values\['x'\]: expected a number or a real tensor with one element, found {found}"):
            monitor.log({"x": value})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="values: expected a dict of numbers by name, found float"):
        monitor.log(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values: expected other names than 'step'"):
        monitor.log({"step": 1})
    monitor.close()
    with pytest.raises(RuntimeError, match="log: expected an open monitor"):
        monitor.log({"x": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a folder, found the file"):
        gs.Monitor(surgery, tmp_path / "file")
    (tmp_path / "log.csv").write_text("\n1,2\n")
    with pytest.raises(ValueError, match="expected a log whose first column is 'step', found an empty line"):
        gs.Monitor(surgery, tmp_path)
    (tmp_path / "log.csv").write_text("time,loss\n1,2\n")
    with pytest.raises(ValueError, match="expected a log whose first column is 'step', found 'time'"):
        gs.Monitor(surgery, tmp_path)
    with pytest.raises(TypeError, match="writer: expected a folder or a SummaryWriter, found int"):
        gs.TensorBoardSink(3)


def test_names_with_commas_and_dashes(tmp_path: Path) -> None:
    names = ('a,"b"', "c-d")
    surgery = gs.GradientAggregator("sum", tasks=names)
    with gs.Monitor(surgery, tmp_path), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.ones(3, requires_grad=True)
        a, b = surgery.split(x * 1)
        (a.sum() + b.sum()).backward()
    assert float(table(tmp_path / "log.csv")[0]['cosine/a,"b"-c-d']) == pytest.approx(1.0)
