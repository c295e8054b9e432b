"""log.csv reads back exactly and is cut to a checkpoint's position."""

import csv
from pathlib import Path

import pytest
from harness.errors import RunError
from harness.log import RunLog, read_log

COLUMNS = ["loss/a", "loss/b", "val/x"]


def _log(path: Path, **resume: int) -> RunLog:
    return RunLog(path / "log.csv", COLUMNS, path / "tensorboard", **resume)


def test_numbers_read_back_exactly_and_missing_cells_stay_empty(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.row(1, 0, {"loss/a": 0.1 + 0.2, "loss/b": 1e-300})
    log.row(2, 0, {"loss/a": float("inf")})
    log.row(2, 0, {"val/x": 1 / 3})
    log.close()
    series = read_log(tmp_path / "log.csv")
    assert series["loss/a"] == {1: 0.1 + 0.2, 2: float("inf")}
    assert series["loss/b"] == {1: 1e-300}
    assert series["val/x"] == {2: 1 / 3}
    with open(tmp_path / "log.csv", newline="") as file:
        assert next(csv.reader(file)) == ["step", "epoch", *COLUMNS]


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.row(1, 0, {"loss/a": 1.0})
    position = log.position()
    kept = (tmp_path / "log.csv").read_bytes()
    assert len(kept) == position
    log.row(2, 0, {"loss/a": 2.0})
    log.row(3, 0, {"loss/a": 3.0})
    log.close()

    log = _log(tmp_path, position=position, step=1)
    assert (tmp_path / "log.csv").read_bytes() == kept
    log.row(2, 0, {"loss/a": 20.0})
    log.close()
    assert read_log(tmp_path / "log.csv")["loss/a"] == {1: 1.0, 2: 20.0}


def test_a_log_shorter_than_its_checkpoint_says_is_refused(tmp_path: Path) -> None:
    _log(tmp_path).close()
    with pytest.raises(RunError, match=r"log\.csv: holds \d+ bytes, but the checkpoint was written when it held 10000"):
        _log(tmp_path, position=10_000, step=5)


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    log = _log(tmp_path)
    with pytest.raises(ValueError, match=r"no columns named \['loss/c'\]"):
        log.row(1, 0, {"loss/c": 1.0})
    log.close()
