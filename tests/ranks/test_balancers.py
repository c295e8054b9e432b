"""Balancers of several processes give what one process gives on the whole batch, with the exchanges that they say."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from balancers.problems import same
from ranks import balancing
from ranks.balancing import Case
from ranks.launch import ranks

import gradsurgery as gs

NAMES = sorted(gs.balancers())
STEPS = 20

CASES = [
    *[Case(name, "pcgrad") for name in NAMES],
    Case("uw"),
    Case("gradnorm"),
    Case("gradnorm", "sum", source="aggregator"),
    Case("gradnorm", "pcgrad", {"parametrisation": "softmax", "initial_steps": 3}, source="aggregator", form="detach"),
    Case("gradnorm", options={"parametrisation": "softmax"}, micro=2),
    Case("gradnorm", "pcgrad", source="aggregator", micro=2),
    Case("uw", "pcgrad", {"form": "liebel"}, form="detach"),
    Case("uw", "pcgrad", {"kinds": ("classification", "regression", "regression")}, micro=2),
    Case("imtll", "pcgrad", form="detach", micro=2),
    Case("famo", "pcgrad", {"update_on_next_call": True}, form="detach"),
    Case("dwa", "pcgrad", {"window": 3}, form="detach"),
    Case("stch", "pcgrad", {"warmup": 2}, form="detach"),
    Case("rlw", "pcgrad", {"seed": 7}, form="detach"),
    Case("constant", "pcgrad", {"weights": (1.0, 0.2, 3.0)}, form="detach"),
]
IDS = [str(case) for case in CASES]


def close(found: Any, expected: Any) -> None:
    """Equal to 1e-12, NaN to NaN; what is no floating point number to the bit."""
    if isinstance(found, torch.Tensor) and found.is_floating_point():
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    elif isinstance(found, (dict, list, tuple)):
        assert len(found) == len(expected)
        for key in found if isinstance(found, dict) else range(len(found)):
            close(found[key], expected[key])
    else:
        assert same(found, expected)


@pytest.fixture(scope="module", params=[2, 3])
def runs(request: pytest.FixtureRequest) -> tuple[int, list[list[balancing.Outcome]]]:
    """Every case on so many ranks. [R][cases]"""
    return request.param, ranks(request.param, balancing.train, CASES, range(STEPS))


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_equals_one_process(runs: tuple[int, list[list[balancing.Outcome]]], case: int) -> None:
    parts, found = runs
    state, weights, totals = balancing.trained(CASES[case], parts, None, range(STEPS))
    for rank in range(parts):
        close(found[rank][case][0], state)
        close(found[rank][case][1], weights)
    for rank in range(parts):
        close(found[rank][case][2], totals)
    assert (weights.nan_to_num().diff(dim=0) != 0).any() or CASES[case].balancer == "constant"


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_weights_and_state_are_the_same_bits_on_every_rank(runs: tuple[int, list[list[balancing.Outcome]]], case: int) -> None:
    found = [outcomes[case] for outcomes in runs[1]]
    for state, weights, _ in found[1:]:
        assert same(weights, found[0][1])
        assert same(state, found[0][0])


def test_state_goes_from_one_number_of_processes_to_another() -> None:
    """Ten steps in one process, ten on two ranks; and on two, then in one: as twenty."""
    cases = [case for case in CASES if case.micro == 1]
    first, second = range(STEPS // 2), range(STEPS // 2, STEPS)
    halves = [balancing.trained(case, 2, None, first)[0] for case in cases]
    torch.save(halves, file := io.BytesIO())
    on_two = ranks(2, balancing.train, cases, second, file.getvalue())
    from_two = ranks(2, balancing.train, cases, first)
    for k, case in enumerate(cases):
        whole = balancing.trained(case, 2, None, range(STEPS))[0]
        assert list(halves[k][1]) == list(from_two[0][k][0][1])
        close(on_two[1][k][0], whole)
        close(balancing.trained(case, 2, None, second, from_two[1][k][0])[0], whole)


@pytest.mark.parametrize(("source", "names"), [("layer", NAMES), ("aggregator", ["gradnorm"])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exchanged(source: str, names: list[str], dtype: torch.dtype) -> None:
    losses = ("allreduce_", 3, torch.float64)
    gram = ("allreduce_", 6, torch.float64)
    for found in ranks(2, balancing.count, names, source, dtype):
        for name, calls in found.items():
            expected = [] if name == "constant" else [losses]
            if name == "gradnorm" and source == "layer":
                expected.append(("allreduce_", 3 * (4 * 3 + 3), dtype))
            assert calls.pop("call") == calls.pop("weighted") == expected, name
            assert calls.pop("backward") == [gram], name
            assert calls.pop("out of training") == [], name
            assert calls.pop("end_epoch", []) == [], name
            assert calls.pop("update", [losses]) == [losses], name
            assert not calls


OTHERS: dict[str, dict[str, Any]] = {
    "constant": {"weights": (1.0, 2.0, 3.0)},
    "dwa": {"temp": 1.0, "window": 5},
    "famo": {"min_losses": {"a": 0.1, "b": 0.0, "c": 0.0}, "lr": 0.1, "weight_decay": 0.0, "eps": 0.0, "update_on_next_call": True},
    "gls": {},
    "gradnorm": {
        **{"aggregator": None, "layer": None, "alpha": 1.0, "initial_losses": torch.ones(3), "initial_steps": 2},
        "parametrisation": "softmax",
    },
    "imtll": {"initial_log_scales": 0.5},
    "rlw": {"seed": 1},
    "stch": {"mu": 0.5, "weights": 2.0, "reference": 0.1, "warmup": 2},
    "uw": {"form": "liebel", "kinds": "classification", "initial_log_vars": 0.5},
    "uwso": {"temp": 2.0},
}


def test_what_differs_between_ranks_is_named_on_all() -> None:
    assert {name: set(options) for name, options in OTHERS.items()} == {n: set(s.options) for n, s in gs.balancers().items()}
    for found in ranks(2, balancing.disagree, OTHERS):
        for (name, option), message in found.items():
            named = "tasks" if option == "number" else option
            assert message.startswith(f"ValueError {named}: expected the same on every rank, found rank 0: "), (name, message)
        assert "rank 0: ['a', 'b', 'c']; rank 1: ['c', 'b', 'a']" in found["uw", "tasks"]


def test_calls_that_cannot_be_are_refused_on_all() -> None:
    for found in ranks(2, balancing.misuse):
        nowhere = "ValueError losses: expected the loss of at least one task on some rank, found none on any."
        assert found["none"] == found["none of loss-only"] == nowhere
        for name in ("weighted", "eval"):
            assert found[name].startswith("ValueError losses: expected the loss of at least one task, found none.")
            assert "call balancer({}) and propagate that" in found[name]
        assert found["update"].startswith("ValueError losses: expected the tasks of the last call (a, b, c), found a.")
        assert found["aggregator and group"].startswith("ValueError process_group: expected none with aggregator=")
        assert found["local"].startswith("ValueError aggregator: expected sync='global'")
        assert found["differs"].startswith("ValueError alpha: expected the same on every rank, found rank 0: 1.0; rank 1: 2.0")
        assert found["other order"] == "nothing"
        assert found["no group"].startswith("TypeError process_group: expected a torch.distributed process group")


def test_a_rank_that_went_its_own_way_is_found_where_checks_are_asked_for() -> None:
    for fine, error in ranks(2, balancing.diverged, TORCH_DISTRIBUTED_DEBUG="DETAIL"):
        assert fine == "nothing"
        assert error.startswith(
            "RuntimeError weights: expected the same bits on every rank in step 1, found rank 0: [0.5, 0.5, 0.5]"
        )


def test_a_broken_loss_on_one_rank_is_one_on_all() -> None:
    names = [name for name in NAMES if name != "constant"]
    one, other = ranks(2, balancing.broken, names)
    for name in names:
        assert one[name][0].isnan(), name
        assert same(one[name][1:], other[name][1:]), name
        states = [x for x in one[name][2].values() if isinstance(x, torch.Tensor)]
        assert name in ("dwa", "stch") or all(x.isfinite().all() for x in states), name


def test_within_a_wrapped_model_nothing_counts_twice() -> None:
    for inside, beside in ranks(2, balancing.wrapped, 3):
        assert torch.equal(inside, beside)
        assert (inside != 0).all()


def test_losses_in_16_bits() -> None:
    """The means of (1, 2), (0, 3), (3, 4) are 1.5, 1.5 and 3.5, and dB/dL = B / (3 L)."""
    value = torch.tensor(1.5 * 1.5 * 3.5).pow(1 / 3)
    dtypes = [torch.float16, torch.bfloat16]
    for found in ranks(2, balancing.mixed, dtypes):
        for dtype, (of_total, total, grad) in zip(dtypes, found, strict=True):
            assert of_total == torch.float32
            torch.testing.assert_close(total, value)
            torch.testing.assert_close(grad, (value / 4.5).to(dtype), rtol=1e-2, atol=0.0)


def test_copies_share_the_communicator_and_pickles_are_refused() -> None:
    for same_value, refused in ranks(2, balancing.copies):
        assert same_value
        assert refused.startswith("TypeError process_group: a communicator cannot be pickled")
