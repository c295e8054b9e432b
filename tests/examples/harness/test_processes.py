"""Processes that train together get the numbers of one, stop together, and go on as however many."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.errors import RunError
from harness.log import read_log
from harness.processes import average, is_first, part_of, together
from harness.resume_point import load_state
from ranks import trainer
from ranks.launch import RankError, attempts, ranks
from torch import nn

FORMS = [
    ("--method", "pcgrad", "--clip-norm", "1"),
    ("--method", "cagrad", "--form", "detach", "--balancer", "uncertainty"),
    ("--method", "sum", "--balancer", "famo"),
    ("--method", "pcgrad", "--form", "parameters", "--balancer", "uncertainty"),
    ("--method", "mean", "--form", "detach", "--balancer", "gradnorm"),
]


def _train(world: int, out: Path, *options: str, stop: tuple[int, int, int] | None = None, **problem: Any) -> list[Any]:
    return ranks(world, trainer.train, out, options, stop, problem)


def _same_numbers(one: Path, other: Path) -> None:
    logs = [read_log(run / "log.csv") for run in (one, other)]
    assert logs[0].keys() == logs[1].keys()
    for name, series in logs[0].items():
        assert list(series) == list(logs[1][name]), name
        assert list(logs[1][name].values()) == pytest.approx(list(series.values()), rel=1e-6, abs=1e-8), name
    states = [load_state(run / "checkpoints/last") for run in (one, other)]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(states[1][part], states[0][part], rtol=1e-6, atol=1e-8)
    assert [state["step"] for state in states] == [15, 15]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    _train(1, out, *FORMS[0])
    return out


@pytest.mark.parametrize(
    ("options", "world"), [(FORMS[0], 4), *((options, 2) for options in FORMS)],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, tuple) else str(value),
)  # fmt: skip
def test_many_processes_are_as_one(tmp_path: Path, whole: Path, options: tuple[str, ...], world: int) -> None:
    """Samples without targets lie unevenly on the ranks, "rare" on one of them or none; a layer is frozen in the first epoch."""
    problem = {} if options is FORMS[0] else {"frozen": 1}
    if problem:
        _train(1, tmp_path / "one", *options, **problem)
    many = _train(world, tmp_path / "many", *options, **problem)
    _same_numbers(tmp_path / "one" if problem else whole, tmp_path / "many")
    assert all(torch.equal(value, many[0][2][name]) for other in many for name, value in other[2].items())
    rare = read_log(tmp_path / "many/log.csv")["loss/rare"]
    assert 0 < len(rare) < 15


@pytest.mark.parametrize(("stopped", "step", "world"), [(2, 2, 1), (2, 5, 2), (1, 7, 2)])
def test_processes_stop_together_and_go_on_as_however_many(
    tmp_path: Path, whole: Path, stopped: int, step: int, world: int
) -> None:
    """The signal reaches the last rank alone."""
    out = tmp_path / "run"
    ended = _train(stopped, out, *FORMS[0], stop=(stopped - 1, step, trainer.SIGTERM))
    assert [end[:2] for end in ended] == [(trainer.SIGTERM, step)] * stopped
    _train(world, out, "--resume")
    _same_numbers(whole, out)


def test_killed_processes_go_on_from_their_checkpoint(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    assert attempts(2, trainer.train, out, FORMS[0], (-1, 8, trainer.SIGKILL), {}) == [-trainer.SIGKILL] * 2
    assert load_state(out / "checkpoints/last")["step"] == 5
    _train(2, out, "--resume")
    _same_numbers(whole, out)


@pytest.mark.parametrize(
    ("options", "problem", "told"),
    [
        (("--batch-size", "5"), {}, "--batch-size 5: expected a multiple of the 2 processes"),
        ((), {"dropout": 0.5}, r"trunk\.3 \(Dropout\) drops a share of 0\.5 at random"),
        (("--method", "imtlg", "--method-option", "c=1"), {}, "--method imtlg: "),
        (("--method", "graddrop"), {}, "--method graddrop: process_group: expected a method that K decides"),
        (("--amp", "bf16"), {}, "--double --amp bf16: expected one of the two"),
        (("--device", "cuda:1"), {}, "--device cuda:1: expected cuda or cpu with several processes"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) and value else None,
)
def test_what_several_processes_cannot_do_is_refused(
    tmp_path: Path, options: tuple[str, ...], problem: dict[str, Any], told: str
) -> None:
    errors = ranks(2, trainer.refused, tmp_path / "run", options, problem)
    assert len(set(errors)) == 1
    with pytest.raises(RankError, match=told):
        raise RankError(errors[0][1])
    assert errors[0][0] == "AgreedError"  # which the first alone tells
    assert not (tmp_path / "run").exists()


def test_an_error_on_one_rank_is_every_ranks() -> None:
    assert ranks(2, trainer.failing) == ["rank 1: no such file"] * 2


def test_batch_statistics_are_of_all_ranks() -> None:
    x, upstream = torch.randn(6, 3, 5, dtype=torch.float64) * 7 + 100, torch.randn(6, 3, 5, dtype=torch.float64)
    layer = nn.BatchNorm1d(3, dtype=torch.float64)
    x.requires_grad_()
    for _ in range(2):
        layer.zero_grad()
        x.grad = None
        expected = layer(x)
        expected.backward(upstream)
    outs, gradients, weights, buffers = zip(*ranks(2, trainer.normalized, x.detach(), upstream), strict=True)
    torch.testing.assert_close(torch.cat(outs), expected.detach())
    torch.testing.assert_close(torch.cat(gradients), x.grad)
    torch.testing.assert_close(sum(weights), layer.weight.grad)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffers[0][f"0.{name}"], buffer)


def test_one_process_has_everything() -> None:
    assert "WORLD_SIZE" not in os.environ
    assert part_of(5) == slice(0, 5)
    value = torch.ones(2)
    assert average(value) is value


def test_a_launch_without_a_rank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert is_first()
    with pytest.raises(RunError, match=r"WORLD_SIZE=2: expected RANK"), together():
        pass
