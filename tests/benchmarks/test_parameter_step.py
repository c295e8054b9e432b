"""Ways to the gradients in parameter space are checked before they are timed, by an oracle that refuses what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import parameter_step
import pytest
import torch
from distances import APPROXIMATIONS, METHODS, Distance, Planted, distance_rows
from memory import in_a_child
from oracle import pcgrad
from parameter_step import CONTENDERS, EVERY, RIVALS, TURN, Experiment, Oracle, check, entered, parameter_rows, small_trunk
from step import Batch
from timing import Call, Effort

CPU = torch.device("cpu")
TINY = Batch(count=2, size=16)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment(CPU, TINY, 3, small_trunk)


@pytest.fixture(scope="module")
def oracle(experiment: Experiment) -> Oracle:
    return Oracle(experiment)


@pytest.mark.parametrize("form", CONTENDERS)
def test_every_contender_passes_its_check(form: str, experiment: Experiment, oracle: Oracle) -> None:
    if form in RIVALS:
        pytest.importorskip("torchjd")
    contender = CONTENDERS[form]
    assert check(form, contender, contender.call(experiment), experiment, oracle) <= contender.tolerance


@pytest.mark.parametrize(("form", "taken_for"), [("plain", "full"), ("full", "plain"), ("full", "gram_on"), ("gram_on", "full")])
def test_a_wrong_gradient_is_refused(form: str, taken_for: str, experiment: Experiment, oracle: Oracle) -> None:
    wrong = replace(CONTENDERS[taken_for], prepare=CONTENDERS[form].prepare)
    with pytest.raises(AssertionError, match=r"wrong: the gradient of the trunk is off by .* at T = 3, where 1e-04 is allowed"):
        check("wrong", wrong, wrong.call(experiment), experiment, oracle)


def test_heads_are_checked(experiment: Experiment, oracle: Oracle) -> None:
    right = CONTENDERS["full"].call(experiment)

    def call() -> None:
        right()
        assert experiment.heads[1].weight.grad is not None
        experiment.heads[1].weight.grad *= 2

    with pytest.raises(AssertionError, match="wrong: the gradient of the heads is off"):
        check("wrong", CONTENDERS["full"], call, experiment, oracle)


def test_orders_matter_to_the_oracle(experiment: Experiment, oracle: Oracle) -> None:
    six = Oracle(Experiment(CPU, TINY, 6, small_trunk))
    ascending, descending = [list(range(6))] * 6, [list(range(5, -1, -1))] * 6
    a, d = six.gradient(ascending, False), six.gradient(descending, False)
    assert float((a - d).norm() / a.norm()) > 0.1
    assert six.gradient(ascending, False) is a  # found once


def test_the_last_stages_weights_are_those_of_its_own_surgery(oracle: Oracle) -> None:
    orders = [[0, 1, 2]] * 3
    gradient = oracle.gradient(orders, on_last_stage=True)
    stage = pcgrad(oracle.stage, orders)
    count = stage.numel()
    torch.testing.assert_close(gradient[-count:], stage, rtol=0, atol=1e-9 * float(stage.norm()))  # the stage is the trunk's last
    assert float((gradient - oracle.gradient(orders, False)).norm()) > 1e-3 * float(gradient.norm())


def test_a_model_without_conflict_is_refused() -> None:
    experiment = Experiment(CPU, TINY, 2, small_trunk)
    experiment.heads[1].load_state_dict(experiment.heads[0].state_dict())
    with pytest.raises(AssertionError, match="2 tasks: no two conflict"):
        Oracle(experiment)


@contextmanager
def in_this_process(prepare: Mapping[str, Callable[[], Call]]) -> Iterator[dict[str, Callable[[int], list[float]]]]:
    """Contenders that are made as their processes would make them, and whose calls take two seconds."""

    def turn(call: Call) -> Callable[[int], list[float]]:
        def take(count: int) -> list[float]:
            call()
            return [2.0] * count

        return take

    yield {name: turn(make()) for name, make in prepare.items()}


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_step, "workers", in_this_process)


@pytest.mark.usefixtures("without_processes")
def test_rows() -> None:
    pytest.importorskip("torchjd")
    rows = parameter_rows([1, 2], Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)), CPU, TINY, small_trunk)
    assert [(r["tasks"], r["form"]) for r in rows] == [(T, form) for T in (1, 2) for form in entered(T)]
    for row in rows:
        assert row["kind"] == "parameter step"
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["conflicts"] == (row["tasks"] == 2)


@pytest.mark.usefixtures("without_processes")
def test_times_are_a_steps() -> None:
    pytest.importorskip("torchjd")
    rows = {r["form"]: r for r in parameter_rows([2], Effort(0.0, 0.0, (4, 4)), CPU, TINY, small_trunk)}
    assert (rows["full"]["p50"], rows["full"]["samples"]) == (2.0, 4 * TURN)
    assert (rows["every"]["p50"], rows["every"]["samples"]) == (2.0 / EVERY, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_a_whole_steps() -> None:
    pytest.importorskip("torchvision")
    row = in_a_child(["parameters", "cpu", "plain", "2", "32", "2"])
    gradients = 4 * 11_186_772  # of ResNet-18 and two heads, float32
    assert row["kind"] == "parameter memory"
    assert gradients < row["extra_bytes"] < 2 * gradients


def test_distances_are_those_of_weights_and_gradients() -> None:
    distance = Distance()
    e1, e2 = torch.eye(2)
    distance.add(torch.tensor([1.0, 2.0]), e1, torch.tensor([1.5, 2.0]), e1)
    distance.add(torch.tensor([1.0, 2.0]), e2, torch.tensor([1.0, 2.25]), e1)
    assert distance.row() == {"weights_mean": 0.375, "weights_max": 0.5, "cosine_mean": 0.5, "cosine_min": 0.0}


def test_planted_patterns_can_be_found() -> None:
    planted = Planted(CPU, Batch(count=64, size=16))
    images, labels = planted.draw()
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])
    other, _ = planted.draw()
    assert not torch.equal(images, other)
    for place, found in ((0, labels[0]), (1, labels[2])):
        matches = images.flatten(1) @ planted._patterns[place].flatten(1).T
        assert torch.equal(matches.argmax(1), found)


def test_distance_rows() -> None:
    rows = distance_rows(2, CPU, TINY, small_trunk)
    assert [(r["method"], r["form"]) for r in rows] == [(method, form) for method in METHODS for form in APPROXIMATIONS]
    for row in rows:
        assert 0 < row["weights_max"] < 1  # neither is what it stands for, nor anything else
        assert 0.9 < row["cosine_min"] < 1
        assert row["conflicts"] > 0
