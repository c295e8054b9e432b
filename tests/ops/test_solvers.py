"""Every compiled solver against its reference in plain PyTorch, through the operator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ops.solver_calls import SOLVER_METHODS, misfits, solver_call, task_counts

import gradsurgery as gs
from gradsurgery.ops import solvers

OPS = torch.ops.gradsurgery
REFERENCE = SimpleNamespace(solve=solvers.solve)


def test_every_solver_serves_a_method() -> None:
    assert {gs.methods()[name].cls.solver for name in SOLVER_METHODS} == set(solvers.SOLVERS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_compiled_and_reference_agree(name: str, groups: int) -> None:
    for tasks in task_counts(name, 12):
        for seed in range(3):
            call = solver_call(name, tasks, seed, groups)
            (w, report, state, key), (other, other_report, other_state, other_key) = (
                call.run(OPS),
                call.run(REFERENCE),
            )
            scale = float((other.abs() * call.gram.diagonal(dim1=-2, dim2=-1).sqrt()).sum(-1).max())
            difference = w - other
            apart = (difference[..., None, :] @ call.gram @ difference[..., :, None]).clamp_min(0).sqrt()
            assert float(apart.max()) <= 1e-8 * scale
            assert torch.equal(report[..., :3], other_report[..., :3])
            if state is not None and other_state is not None:
                torch.testing.assert_close(state, other_state, rtol=1e-8, atol=1e-12)
            if key is not None and other_key is not None:
                assert torch.equal(key, other_key)


@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_groups_are_solved_like_single_ones(name: str) -> None:
    """To the bit; random draws differ from group to group, and the first group's are those of a call without groups."""
    call = solver_call(name, 4, groups=3)
    w, report, *_ = call.run(OPS)
    for g in range(3 if call.key is None else 1):
        state = None if call.state is None else call.state[g : g + 1]
        single, single_report = OPS.solve(
            call.gram[g], call.solver, call.options, call.given, state, None, None if call.key is None else call.key.clone()
        )
        assert torch.equal(single, w[g])
        assert torch.equal(single_report, report[g])


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises((RuntimeError, KeyError), match="nosuch"):
        OPS.solve(torch.eye(2, dtype=torch.float64), "nosuch", [])


@pytest.mark.parametrize("ops", [OPS, REFERENCE], ids=["operator", "reference"])
@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_arguments_of_other_sizes_are_refused(name: str, groups: int, ops: Any) -> None:
    """Before a solver would read or write past them; what was given stays as it is."""
    call = solver_call(name, 5, groups=groups)
    for wrong, message in misfits(call):
        state = None if wrong.state is None else wrong.state.clone()
        with pytest.raises(RuntimeError, match=message):
            ops.solve(wrong.gram, wrong.solver, wrong.options, wrong.given, state, None, wrong.key)
        if state is not None:
            assert torch.equal(state, wrong.state)


@pytest.mark.parametrize("ops", [OPS, REFERENCE], ids=["operator", "reference"])
def test_krum_counts_only_the_neighbours_there_are(ops: Any) -> None:
    """Options that its method would refuse cannot make it read past the distances, or write nonsense."""
    K = solver_call("krum", 4).gram
    for corrupt in (-1e300, -7.0, 9.0, 1e300):
        for kept in (-1e300, 0.0, 2.0, 9.0, 1e300):
            w, _ = ops.solve(K, "krum", [corrupt, kept])
            chosen = int(min(max(kept, 0), 4))
            assert sorted(w.tolist()) == [0.0] * (4 - chosen) + [1 / max(chosen, 1)] * chosen
