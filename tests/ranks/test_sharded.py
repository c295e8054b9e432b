"""Surgery on parameters that lie in parts on several ranks is that of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import sharded
from ranks.launch import ranks

METHODS: dict[str, dict[str, Any]] = {"pcgrad": {"order": "random"}, "cagrad": {}, "upgrad": {}, "nashmtl": {}}
LAYOUTS = [("nested", 1), ("nested", 2), ("nested", 3), ("nested", 4), ("hybrid", 4), ("tensor", 2), ("both", 4)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_training_is_that_of_one_process(layout: str, world: int, method: str) -> None:
    expected, weights = sharded.train(0, "", method, METHODS[method])
    found = ranks(world, sharded.train, layout, method, METHODS[method])
    for parameters, w in found:
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(w, weights, rtol=1e-9, atol=1e-12)
        assert torch.equal(w, found[0][1])
        assert torch.equal(parameters, found[0][0])
