"""The emulated CUDA device, and the CUDA operators wherever they can run."""

from __future__ import annotations

import os

import pytest
import torch
from cuda_emulator import Emulator, Operators

import gradsurgery as gs


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture(params=["emulated", "gpu"])
def operators(request: pytest.FixtureRequest) -> Operators:
    if request.param == "emulated":
        return Operators(request.getfixturevalue("emulator").operators, torch.device("cpu"))
    if not torch.cuda.is_available():
        if os.environ.get("GRADSURGERY_REQUIRE_CUDA") == "1":
            pytest.fail("GRADSURGERY_REQUIRE_CUDA=1, but torch finds no CUDA device.", pytrace=False)
        pytest.skip("torch finds no CUDA device")
    assert gs.build_info()["cuda"] is True, f"the CUDA kernels are missing: {gs.build_info()['missing']}"
    return Operators(torch.ops.gradsurgery, torch.device("cuda"))
