"""What a page registers is gone after its test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _registry_as_it_was(own_registry: None) -> None:
    """Of a page that shows how to write a method."""
