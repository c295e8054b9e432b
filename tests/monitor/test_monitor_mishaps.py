"""A monitor and what goes wrong around it: errors in hooks and sinks, folders that are used, checkpoints that are loaded."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from pathlib import Path

import pytest
import torch
from monitor.problem import TASKS, Net, batch, table, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import gradsurgery as gs
from gradsurgery.monitor import run_folder
from gradsurgery.monitor.rows import Row


def losses(net: Net, step: int = 0) -> dict[str, Tensor]:
    x, y = batch(step)
    z = net.trunk(x)
    return {task: net.loss(task, z, y) for task in TASKS}


def test_who_listens_hears_of_a_step_when_its_gradients_are_written() -> None:
    net, surgery, heard = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS), []
    surgery.register_statistics_hook(lambda step: heard.append((step.step, net.trunk[0].weight.grad is not None)))
    surgery.backward(losses(net), shared=net.trunk)
    total = surgery.total(losses(net), shared=net.trunk)
    net.zero_grad()
    total.backward()
    assert heard == [(0, True), (1, True)]


def test_a_step_that_fails_leaves_the_history_and_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    net, surgery, heard = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS, history=1), []
    surgery.backward(losses(net), shared=net.trunk)
    surgery.register_statistics_hook(lambda step: heard.append(step.step))
    surgery.register_step_hook(lambda step, gram: heard.append(step.step))

    def fails(self: object, weights: Tensor) -> None:
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("gradsurgery.one_pass.OnePass.finish", fails)
        with pytest.raises(MemoryError, match="planted"):
            surgery.backward(losses(net), shared=net.trunk)
    assert heard == []
    assert surgery.statistics().step == 0, "the step before is still the last, though there is room for one alone"
    surgery.backward(losses(net), shared=net.trunk)
    assert heard == [1, 1]


def test_an_error_in_reading_ends_the_monitor_and_not_the_training(tmp_path: Path) -> None:
    class Broken(gs.UncertaintyWeighting):
        @property
        def weights(self) -> Tensor:
            raise RuntimeError("planted")

    net, surgery = Net(), gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path, balancer=Broken(TASKS))
    with pytest.warns(UserWarning, match=r"Monitor: it ends here.*RuntimeError: planted.*Training goes on"):
        train(net, surgery, "split", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, surgery, "split", 2)
    assert monitor.rows == []
    with pytest.raises(RuntimeError, match="log: expected an open monitor"):
        monitor.log({"x": 1})


def test_a_failing_sink_where_warnings_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next sink gets the rows, and training goes on."""

    def fails(step: int, values: object) -> None:
        raise OSError("planted")

    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gs.Monitor(surgery, fails, tmp_path, read_every=1):
            train(Net(), surgery, "split", 3)
    assert [row["step"] for row in table(tmp_path / "log.csv")] == ["0", "1", "2"]
    assert "fails failed and gets no more rows (OSError: planted)" in capsys.readouterr().err


def test_a_sink_that_flushes() -> None:
    surgery, seen = gs.GradientAggregator("sum", tasks=TASKS), []

    def flushes(step: int, values: object) -> None:
        seen.append(step)
        monitor.flush()

    monitor = gs.Monitor(surgery, flushes, read_every=2)
    train(Net(), surgery, "split", 7)
    monitor.close()
    assert seen == list(range(7))


def test_a_new_run_keeps_the_log_of_the_one_before(tmp_path: Path) -> None:
    """Other tasks, and no groups: nothing of the earlier run is left in what is read."""
    net, surgery = Net(), gs.GradientAggregator("cagrad", c=0.3, tasks=TASKS, group_by="layer")
    with gs.Monitor(surgery, tmp_path):
        train(net, surgery, "parameters", 6)
    before, layers = (tmp_path / "log.csv").read_text(), (tmp_path / "layers.csv").read_text()
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "written_by": "gradsurgery.Monitor", "method": "cagrad",
        "method_options": {name: str(getattr(surgery.method, name)) for name in surgery.method.spec.options},
        "group_by": "layer", "every": 1, "read_every": 100,
    }  # fmt: skip

    surgery = gs.GradientAggregator("sum", tasks=("one", "other"))
    with (
        pytest.warns(UserWarning, match=r"held 6 steps of an earlier run.*kept as log.previous.csv and layers.previous.csv"),
        gs.Monitor(surgery, tmp_path),
    ):
        surgery.aggregate(torch.eye(2))
    assert (tmp_path / "log.previous.csv").read_text() == before
    assert (tmp_path / "layers.previous.csv").read_text() == layers
    assert not (tmp_path / "layers.csv").exists()
    (row,) = table(tmp_path / "log.csv")
    assert not [name for name in row if any(task in name for task in TASKS)]
    assert json.loads((tmp_path / "config.json").read_text())["method"] == "sum"


def test_a_trainers_own_configuration_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"method": "mine"}')
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    with gs.Monitor(surgery, tmp_path):
        train(Net(), surgery, "split", 1)
    assert (tmp_path / "config.json").read_text() == '{"method": "mine"}'


@pytest.mark.parametrize("again", [False, True], ids=["the same monitor", "another process's"])
def test_what_is_logged_after_loading_goes_to_the_last_step_of_the_checkpoint(tmp_path: Path, again: bool) -> None:
    net, surgery = Net(), gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path)
    train(net, surgery, "split", 3)
    checkpoint = surgery.state_dict()
    train(net, surgery, "split", range(3, 8))
    if again:
        monitor.close()
        surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
        monitor = gs.Monitor(surgery, tmp_path)
    surgery.load_state_dict(checkpoint)
    monitor.log({"val": 7})
    train(net, surgery, "split", range(3, 5))
    monitor.close()
    rows = table(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["val"] for row in rows] == ["", "", "7.0", "", ""]
    assert all(row["norm"] for row in rows)


def test_a_logged_value_may_have_any_name(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    with gs.Monitor(surgery, tmp_path) as monitor:
        train(Net(), surgery, "split", 1)
        monitor.flush()
        many = len(monitor.rows[0].values)
        monitor.log({"absent": 0.0})
        monitor.flush()
        assert len(monitor.rows[0].values) == many


def test_tensorboard_takes_a_step_that_runs_again(tmp_path: Path) -> None:
    sink = gs.TensorBoardSink(tmp_path)
    sink.write([Row(3, {"norm": 5.0}), Row(4, {"norm": 1.0})])
    sink.write([Row(4, {"norm": 2.0})])
    sink.write([Row(4, {"norm": 2.0, "val": 7.0}, amends=True)])
    sink.close()
    curves = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    curves.Reload()
    assert [(event.step, event.value) for event in curves.Scalars("norm")] == [(3, 5.0), (4, 2.0)]
    assert [(event.step, event.value) for event in curves.Scalars("val")] == [(4, 7.0)]


def test_the_collector_finds_a_monitor_while_another_opens_its_folder(tmp_path: Path) -> None:
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path)
    monitor.itself = monitor  # type: ignore[attr-defined]
    done = threading.Event()

    def collects() -> None:
        nonlocal surgery, monitor
        with run_folder._lock:
            del surgery, monitor
            gc.collect()
        done.set()

    threading.Thread(target=collects, daemon=True).start()
    assert done.wait(60), "closing it waited for the lock that its own thread holds"


def test_norms_of_a_far_rewind_are_taken_from_the_log(tmp_path: Path) -> None:
    """More steps than are kept to go back, and a few of those kept left."""
    surgery = gs.GradientAggregator("sum", tasks=("a", "b"))
    with gs.Monitor(surgery, tmp_path, read_every=200) as monitor:
        for step in range(1650):
            if step == 120:
                checkpoint = surgery.state_dict()
            surgery.aggregate(torch.eye(2) * (step % 7 + 1))
        surgery.load_state_dict(checkpoint)
        surgery.aggregate(torch.eye(2))
        monitor.flush()
        lengths = [2**0.5 * (step % 7 + 1) for step in range(21, 120)] + [2**0.5]
        assert monitor.rows[-1].values["norm_mean"] == pytest.approx(sum(lengths) / 100)
