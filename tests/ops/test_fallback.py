"""Without compiled code everything runs on the reference: right, announced once, and told by build_info()."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs

SCRIPT = """
import importlib.abc, json, sys, warnings

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in REFUSED:
            raise REFUSED[name]

REFUSED = {refused}
sys.meta_path.insert(0, Refuse())

import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gradsurgery as gs
    G = torch.arange(-12.0, 12.0).reshape(3, 8) ** 3
    results = dict(
        gram=gs.gram(G).tolist(),
        weights=gs.weights(gs.gram(G), "pcgrad", seed=5).tolist(),
        matrix=gs.aggregate(G, "pcgrad", seed=5).tolist(),
        gaps=[None if g is None else g.tolist() for g in gs.aggregate([[G[0], None], None, [G[2], None]], "pcgrad", seed=5)],
        out=gs.aggregate(G, "mean", out=torch.empty(8)).tolist(),
        combine=gs.combine(list(G), torch.tensor([0.5, 1.0, 2.0])).tolist(),
        groups=gs.gram([[row[:3], row[3:5], row[5:]] for row in G], groups=[0, 1, 0]).tolist(),
        against=gs.gram(G, against=G.flip(0)).tolist(),
        samples=gs.aggregate(G.reshape(3, 4, 2), "pcgrad", samples=True, seed=5).tolist(),
    )
    surgery = gs.GradientAggregator("pcgrad", seed=1)
    z = G.clone().requires_grad_()
    a, b = surgery.split(z, 2)
    (a.sum() - 2 * b.sum()).backward()
    results["split"] = z.grad.tolist()
ours = [str(w.message) for w in caught if "gradsurgery" in str(w.message).lower()]
print(json.dumps(dict(results=results, info=gs.build_info(), warnings=ours)))
"""


def run(refused: str, **env: str) -> dict[str, Any]:
    """Runs SCRIPT in a process of its own; ``refused`` maps modules to the error that importing them raises."""
    environment = os.environ | {"PYTHONPATH": str(Path(gs.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | env
    code = SCRIPT.replace("{refused}", refused)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return run("{}")


def agree(one: Any, other: Any) -> bool:
    """Nested lists, to float32's rounding."""
    if isinstance(one, list):
        return len(one) == len(other) and all(agree(a, b) for a, b in zip(one, other, strict=True))
    return one == other if one is None or other is None else abs(one - other) <= 1e-6 * max(abs(one), abs(other), 1e-3)


def test_with_compiled_code_nobody_is_warned(compiled: dict[str, Any]) -> None:
    assert compiled["warnings"] == []
    assert compiled["info"]["cpu"] is True
    assert compiled["info"]["cpu_capability"] == gs.build_info()["cpu_capability"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ModuleNotFoundError('no such module')", "not built"),
        ("ImportError('libtorch: undefined symbol\\nsecond line')", "libtorch: undefined symbol"),
    ],
)
def test_everything_works_on_the_reference(error: str, reason: str, compiled: dict[str, Any]) -> None:
    modules = ("gradsurgery._C", "gradsurgery._host", "gradsurgery._cuda")
    plain = run("{" + ", ".join(f"{name!r}: {error}" for name in modules) + "}")
    assert plain["results"].keys() == compiled["results"].keys()
    for name, result in plain["results"].items():
        assert agree(result, compiled["results"][name]), name
    assert len(plain["warnings"]) == 1, "said once a process"
    assert "pure-PyTorch reference on cpu" in plain["warnings"][0]
    assert reason in plain["warnings"][0]
    info = plain["info"]
    assert info["cpu"] is False
    assert info["cpu_capability"] is None
    assert info["missing"]["cpu"] == info["missing"]["host"]
    assert info["missing"]["cpu"].startswith(reason)


def test_a_capability_that_cannot_be_met_is_refused_aloud() -> None:
    plain = run("{}", GRADSURGERY_CPU_CAPABILITY="sse9")
    assert len(plain["warnings"]) == 1
    assert "GRADSURGERY_CPU_CAPABILITY='sse9' cannot be met: expected one of baseline, avx2, avx512" in plain["warnings"][0]
    assert plain["info"]["cpu_capability"] == plain["info"]["cpu_capability_available"]


def test_build_info_names_what_is_there() -> None:
    info = gs.build_info()
    assert set(info) == {"version", "torch", "cpu", "cuda", "cpu_capability", "cpu_capability_available", "missing"}
    assert (info["version"], info["torch"]) == (gs.__version__, torch.__version__)
    for part in ("cpu", "cuda"):
        assert info[part] is (part not in info["missing"])
