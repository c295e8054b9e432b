"""Hard K on the emulator: a warp's answers have the certificates that the CPU's have, whatever the schedule of its threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulator import Emulator
from methods.certificates import CERTIFICATES, PRESENT, families, verify

import gradsurgery as gs
from gradsurgery.methods import SolverMethod, Step


@pytest.mark.parametrize(("name", "options"), PRESENT)
@pytest.mark.parametrize("tasks", [2, 5, 17, 32])
def test_certified(emulator: Emulator, name: str, options: dict[str, Any], tasks: int) -> None:
    certificate, _ = CERTIFICATES[name]
    method = gs.methods()[name].build(**options)
    assert isinstance(method, SolverMethod)
    for K in families(tasks, 6, seed=4).values():
        arguments = (K, method.solver, method.options(tasks, Step()), method.given(K, Step()))
        w, status = emulator.operators.solve(*arguments)
        verify(K, w, status, certificate, options, {})
        assert torch.equal(status[:, :2], torch.ops.gradsurgery.solve(*arguments)[1][:, :2])
        for seed in (1, 2):
            with emulator.schedule(seed):
                again, said = emulator.operators.solve(*arguments)
            assert torch.equal(again, w)
            assert torch.equal(said, status)
