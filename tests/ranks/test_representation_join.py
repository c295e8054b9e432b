"""Ranks whose loops have different lengths end, with what one process makes of the batches that are left."""

from __future__ import annotations

import torch
from ranks.launch import ranks
from ranks.representation import Case
from ranks.representation_join import BATCHES, by_itself, refused, terminated, two_levels, uneven, uneven_alone

CASES: list[tuple[Case, tuple[int, ...], bool]] = [
    (Case("pcgrad"), BATCHES, True),
    (Case("nashmtl"), BATCHES[::-1], True),  # whose weights depend on the length of the gradients
    (Case("upgrad"), (4, 0), True),
    (Case("pcgrad"), BATCHES, False),
    (Case("gradvac"), BATCHES, True),
    (Case("pcgrad", options={"every": 2}), BATCHES, True),
    (Case("pcgrad", options={"group_by": "tensor"}, pyramid=True), BATCHES, True),
]


def test_ranks_with_fewer_batches_shadow_the_others() -> None:
    """As if their loss were zero; then all go on together with the same counters."""
    outcomes = ranks(2, uneven, CASES)
    for k, case in enumerate(CASES):
        expected, weights = uneven_alone(*case)
        for outcome in outcomes:
            parameters, found = outcome[k]
            assert len(found) == len(weights) == max(case[1]) + 1
            assert all(map(torch.equal, found, outcomes[0][k][1])), case
            torch.testing.assert_close(found, weights, rtol=0, atol=1e-12)
            torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)


def test_three_ranks_of_three_lengths() -> None:
    case = (Case("cagrad"), (1, 4, 2), True)
    expected, _ = uneven_alone(*case)
    for [(parameters, _)] in ranks(3, uneven, [case]):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)


def test_every_aggregator_of_the_model_is_shadowed() -> None:
    expected = two_levels(None)
    for parameters in ranks(2, two_levels):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)


def test_all_end_where_one_has_no_batch_left() -> None:
    assert ranks(2, terminated) == [min(BATCHES), min(BATCHES)]


def test_models_that_cannot_be_joined() -> None:
    for not_wrapped, other_ranks, lengths, inside, after in ranks(2, refused):
        assert not_wrapped.startswith("TypeError model: join expected a DistributedDataParallel, found Net")
        assert other_ranks.startswith("ValueError model: join expected the ranks of the aggregator's process group, [0, 1], found")
        assert lengths.startswith("ValueError divide_by_initial_world_size: expected True with method 'nashmtl'")
        assert inside.startswith("RuntimeError backward: expected no losses inside join()")
        assert after == "nothing"


def test_a_rank_that_decides_by_itself_is_told_once() -> None:
    for told in ranks(2, by_itself, False):
        assert len(told) == 1
        assert told[0].startswith("gradsurgery: this is one of 2 processes")
    assert ranks(2, by_itself, True) == [[], []]
