"""The emulated CUDA device."""

from __future__ import annotations

import pytest
from cuda_emulator import Emulator


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return Emulator()
