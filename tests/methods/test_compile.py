"""Every method in one graph without breaks, also where the graph is the first that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import registry

G = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-0.5, 1.5, 1.0, 0.25], [2.0, 0.125, -1.0, 0.75]])
TOLD: dict[str, Any] = {"losses": torch.tensor([1.0, 2.0, 0.5]), "against": G.flip(1)}

pytestmark = pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")  # the cache is not for graphs


@pytest.fixture(autouse=True)
def _nothing_is_built() -> Iterator[None]:
    """No method was asked for before, and no graph is compiled."""
    registry._DEFAULTS.clear()
    registry._cached.cache_clear()
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def first_compiled(run: Callable[[Tensor], Tensor], G: Tensor) -> tuple[Tensor, Tensor]:
    """What the graph gives, which is traced before anything else runs, and what comes without one."""
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(G)
    return compiled, run(G)


@pytest.mark.parametrize("name", gs.methods())
def test_the_first_use_of_a_method_compiles(name: str) -> None:
    spec = gs.methods()[name]
    options = {need: TOLD[need] for need in spec.needs}
    if "seed" not in spec.options:
        torch.testing.assert_close(*first_compiled(lambda G: gs.aggregate(G, name, **options), G))
        return
    torch.testing.assert_close(*first_compiled(lambda G: gs.aggregate(G, name, seed=3, **options), G))
    drawing = torch.compile(lambda G: gs.aggregate(G, name, **options), backend="aot_eager", fullgraph=True)
    assert drawing(G).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crmogm", {"inner": "pcgrad", "order": "ascending", "alpha": 0.5}),
        ("cagrad", {"c": 0.25, "rescale": 1}),
        ("mgda", {"gn": "loss", "losses": TOLD["losses"]}),
        ("constant", {"weights": [1.0, 2.0, -3.0]}),
        ("krum", {"n_byzantine": 0, "n_selected": 2}),
    ],
)
def test_so_does_one_with_options(name: str, options: dict[str, Any]) -> None:
    torch.testing.assert_close(*first_compiled(lambda G: gs.aggregate(G, name, **options), G))


@pytest.mark.parametrize("name", ["krum", "random", "modo", "mgda", "moco"])
def test_so_does_one_with_a_task_absent(name: str) -> None:
    spec = gs.methods()[name]
    options = {need: TOLD[need] for need in spec.needs - {"against"}}
    if "losses" in options:
        options["losses"] = torch.cat([options["losses"], torch.tensor([torch.nan])])
    if "seed" in spec.options:
        options["seed"] = 3
    torch.testing.assert_close(*first_compiled(lambda G: gs.aggregate([*G.unbind(), None], name, **options), G))  # type: ignore[arg-type,return-value]
