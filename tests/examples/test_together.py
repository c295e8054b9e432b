"""Every trainer's command line on two processes writes the numbers of one."""

import importlib
import socket
from pathlib import Path

import pytest
import torch
from harness.log import read_log
from harness.resume_point import load_state
from ranks import trainer
from ranks.launch import ranks

COMMON = ("--epochs", "2", "--device", "cpu", "--double")
TRAINERS = {
    "cifar10": ("--train-count", "24", "--val-count", "9", "--batch-size", "8", "--width", "8", "--augment"),
    "text": (
        "--train-count", "24", "--val-count", "9", "--batch-size", "4", "--embedding", "8", "--width", "6", "--dropout", "0",
        "--balancer", "uncertainty",
    ),
    "multihead": (
        "--size", "16", "--patch", "8", "--width", "16", "--depth", "1", "--attention-heads", "2", "--train-count", "24",
        "--val-count", "9", "--batch-size", "4", "--form", "detach", "--method", "cagrad",
    ),
    "multitoken": (
        "--tokens", "2", "--context", "16", "--width", "16", "--layers", "1", "--heads", "2", "--batch-size", "4", "--train-count",
        "12", "--val-count", "5",
    ),
    "nyuv2": (
        "--size", "32", "48", "--train-count", "8", "--val-count", "3", "--batch-size", "4", "--channels", "8", "--tasks",
        "segmentation", "depth", "normal", "--depth-loss", "berhu", "--balancer", "gradnorm", "--freeze-encoder-epochs", "1",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_are_as_one(tmp_path: Path, name: str) -> None:
    options = (*COMMON, *TRAINERS[name])
    assert importlib.import_module(f"{name}.train").main(["--out", str(tmp_path / "one"), *options]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert ranks(2, trainer.main, name, port, ("--out", str(tmp_path / "two"), *options)) == [0, 0]
    one, two = (read_log(tmp_path / run / "log.csv") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for column, series in one.items():
        assert list(two[column]) == list(series), column
        assert list(two[column].values()) == pytest.approx(list(series.values()), rel=1e-5, abs=1e-7), column
    models = [load_state(tmp_path / run / "checkpoints/last")["model"] for run in ("one", "two")]
    models = [{key: value for key, value in model.items() if isinstance(value, torch.Tensor)} for model in models]
    torch.testing.assert_close(models[1], models[0], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "two/table.csv").is_file()
