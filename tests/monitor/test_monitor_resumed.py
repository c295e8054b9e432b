"""A monitor whose run is resumed, goes back, or ends."""

from __future__ import annotations

import copy
import gc
import statistics
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from monitor.problem import TASKS, Losses, Net, numbers, table, train

import gradsurgery as gs


def run_part(
    folder: Path, steps: range, checkpoint: dict[str, Any] | None, save_at: int | None, stop: bool
) -> dict[str, Any] | None:
    """Steps of a run, from a checkpoint, with another after step ``save_at``; stopped without a flush."""
    net = Net()
    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, group_by="layer")
    if checkpoint is not None:
        net.load_state_dict(checkpoint["net"])
        net.optimizer.load_state_dict(checkpoint["optimizer"])
        surgery.load_state_dict(checkpoint["surgery"])
    monitor = gs.Monitor(surgery, folder, read_every=7)
    saved: dict[str, Any] = {}

    def after(step: int, losses: Losses) -> None:
        monitor.log({"lr": step / 10})
        if step == save_at:
            saved.update(
                net=copy.deepcopy(net.state_dict()),
                optimizer=copy.deepcopy(net.optimizer.state_dict()),
                surgery=copy.deepcopy(surgery.state_dict()),
            )
        if step == 100:
            monitor.log({"val/late": 1.0})

    train(net, surgery, "parameters", steps, after)
    if stop:  # as if it were killed
        monitor._closed = True
        for handle in monitor._handles:
            handle.remove()
        monitor._sinks.close()
    else:
        monitor.close()
    return saved


@pytest.mark.parametrize("killed", [125, 160])
def test_a_resumed_run_has_the_log_of_one_that_was_not_stopped(tmp_path: Path, killed: int) -> None:
    """Killed some steps after a checkpoint, of which some are in the folder already, with a line torn."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_part(whole, range(180), None, 120, stop=False)
    saved = run_part(parts, range(killed), None, 120, stop=True)
    assert len(table(parts / "log.csv")) >= 121
    for name in ("log.csv", "layers.csv"):
        with open(parts / name, "a") as file:
            file.write("170,0.1,0.")
    run_part(parts, range(121, 180), saved, None, stop=False)
    for name in ("log.csv", "layers.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()
    assert [row["step"] for row in table(parts / "log.csv")] == [str(s) for s in range(180)]


def test_going_back_in_one_process(tmp_path: Path) -> None:
    """A checkpoint is loaded into the aggregator that is watched: the steps after it are run again, and stand once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    surgery = gs.GradientAggregator("pcgrad", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path, gs.TensorBoardSink(tmp_path / "curves"), read_every=4)
    net = Net()
    train(net, surgery, "split", 10)
    saved = surgery.state_dict()
    train(net, surgery, "split", range(10, 19))
    surgery.load_state_dict(saved)
    train(net, surgery, "split", range(50, 55))
    monitor.close()
    assert [row.step for row in monitor.rows] == list(range(15))
    assert {row.step: row.values["norm"] for row in monitor.rows[10:]} == {s.step: s.norm for s in surgery.history}
    rows = table(tmp_path / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(15))
    assert [float(row["norm_mean"]) for row in rows] == [
        pytest.approx(statistics.fmean(numbers(tmp_path / "log.csv", "norm")[: k + 1])) for k in range(15)
    ]
    curves = EventAccumulator(str(tmp_path / "curves"), size_guidance={"scalars": 0})
    curves.Reload()
    assert [event.step for event in curves.Scalars("norm")] == list(range(15))


def test_a_new_run_in_a_used_folder_begins_anew(tmp_path: Path) -> None:
    for steps in (9, 4):
        surgery = gs.GradientAggregator("sum", tasks=TASKS)
        with gs.Monitor(surgery, tmp_path):
            train(Net(), surgery, "split", steps)
        assert len(table(tmp_path / "log.csv")) == steps


def test_without_being_closed(tmp_path: Path) -> None:
    """Written when the aggregator goes; neither keeps the other alive."""
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    gs.Monitor(surgery, tmp_path / "one")
    train(Net(), surgery, "split", 3)
    assert not (tmp_path / "one").exists()
    gone = weakref.ref(surgery)
    del surgery
    gc.collect()
    assert gone() is None
    assert len(table(tmp_path / "one" / "log.csv")) == 3

    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path / "two")
    held = weakref.ref(surgery)
    del surgery
    gc.collect()
    assert held() is None, "a monitor that is kept keeps no aggregator"
    closed = weakref.ref(monitor)
    surgery = gs.GradientAggregator("sum", tasks=TASKS)
    monitor = gs.Monitor(surgery, tmp_path / "three")
    closed = weakref.ref(monitor)
    monitor.close()
    del monitor
    gc.collect()
    assert closed() is None, "an aggregator keeps no monitor that is closed"


SCRIPT = """
import sys, torch
import gradsurgery as gs
surgery = gs.GradientAggregator("sum", tasks=("a", "b"))
gs.Monitor(surgery, sys.argv[1])
for _ in range(5):
    x = torch.ones(3, requires_grad=True)
    a, b = surgery.split(x * 1)
    (a.sum() + b.sum()).backward()
if sys.argv[2] == "error":
    raise RuntimeError("the loop failed")
"""


@pytest.mark.parametrize("end", ["normal", "error"])
def test_when_python_ends(tmp_path: Path, end: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), end], check=end == "normal", capture_output=True)
    assert len(table(tmp_path / "log.csv")) == 5
