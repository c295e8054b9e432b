"""What ranks have to be given alike is compared when an aggregator is built, and which groups there can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks.launch import ranks
from ranks.representation_faults import SAME, agreements, copies, disagreements, half, outside, refusals

import gradsurgery as gs

NAMED = {
    "order of tasks": "tasks: expected the same on every rank, found rank 0: ['a', 'b']; rank 1: ['b', 'a'].",
    "number of tasks": "tasks: expected the same on every rank, found rank 0: ['0', '1']; rank 1: ['0', '1', '2'].",
    "method": "method: expected the same on every rank, found rank 0: 'pcgrad'; rank 1: 'upgrad'.",
    "option": "c: expected the same on every rank, found rank 0: 0.5; rank 1: 0.4.",
    "option of numbers": "pref: expected the same on every rank, found rank 0: [0.5, 0.5]; rank 1: [0.4, 0.6].",
    "seed": "seed: expected the same on every rank, found rank 0: 1; rank 1: 2.",
    "group_by": "group_by: expected the same on every rank, found rank 0: 'tensor'; rank 1: 'layer'.",
    "function": "group_by: expected the same on every rank, found rank 0: ranks.representation_faults._by_first; rank 1: ",
    "every": "every: expected the same on every rank, found rank 0: 1; rank 1: 2.",
    "sync": "sync: expected the same on every rank, found rank 0: 'global'; rank 1: 'local'.",
    "two": "every: expected the same on every rank, found rank 0: 1; rank 1: 2.",
}

REFUSED = {
    "undeclared": "ValueError tasks: expected their names, or their number, with process_group=",
    "coordinatewise": "ValueError process_group: expected a method that K decides, found 'graddrop'",
    "buffered": "ValueError process_group: expected a method that K decides (families gram, scalarization), found 'moco'",
    "two batches": "ValueError process_group: expected a method that K decides (families gram, scalarization), found 'modo'",
    "samples": "ValueError process_group: expected None with group_by='sample'",
    "no group": "TypeError process_group: expected a torch.distributed process group or a DeviceMesh, found str.",
    "sync": "ValueError sync: expected",
}


def test_what_differs_is_named_on_every_rank() -> None:
    for told in ranks(2, disagreements):
        assert told.keys() == NAMED.keys()
        for name, expected in NAMED.items():
            assert told[name].startswith("ValueError "), name
            assert expected in told[name], name
        assert "seed: expected the same" in told["two"], "all that differs is named"


def test_what_is_the_same_but_for_its_address() -> None:
    assert ranks(2, agreements) == [dict.fromkeys(SAME, "nothing")] * 2


def test_what_goes_with_no_process_group() -> None:
    for told in ranks(2, refusals):
        for name, expected in REFUSED.items():
            assert told[name].startswith(expected), (name, told[name])


def test_groups_without_this_process_and_ranks_in_another_order() -> None:
    first, second = ranks(2, outside)
    assert first[:2] == ("nothing", "nothing")
    assert second[0].startswith(
        "ValueError process_group: expected a group that this process is a member of, found that it is none"
    )
    assert second[1] == "ValueError process_group: expected a group that this process is a member of, found rank 1, members [0]."
    assert first[2] == second[2] == "ValueError seed: expected the same on every rank, found rank 0: 0; rank 1: 1."


def test_one_dimension_of_a_mesh() -> None:
    outcomes = ranks(4, half)
    grams = []
    for rank in range(4):
        draw = torch.Generator().manual_seed(rank)
        G = torch.randn(2, 5, generator=draw, dtype=torch.float64)
        grams.append(G @ G.T / 4)
    for pair in (0, 2):
        K = grams[pair] + grams[pair + 1]
        for weights, found in outcomes[pair : pair + 2]:
            torch.testing.assert_close(found, K, rtol=0, atol=1e-12)
            assert torch.equal(weights, outcomes[pair][0])
            torch.testing.assert_close(weights, gs.weights(K, "pcgrad", seed=0), rtol=0, atol=1e-12)


def test_copies() -> None:
    for pickled, loaded, weights, of_copy in ranks(2, copies):
        assert pickled.startswith("TypeError process_group: a communicator cannot be pickled; save the aggregator's state_dict()")
        assert loaded == "nothing"
        assert torch.equal(weights, of_copy)


def test_without_init_process_group() -> None:
    """torch.distributed.group.WORLD is None then."""
    assert dist.group.WORLD is None
    with pytest.raises(ValueError, match=r"sync: expected 'global' without a process group.*before init_process_group"):
        gs.GradientAggregator("pcgrad", tasks=2, process_group=dist.group.WORLD, sync="local")
    with pytest.raises(TypeError, match=r"process_group: expected .* found bool"):
        gs.GradientAggregator("pcgrad", tasks=2, process_group=True)


WITHOUT_DISTRIBUTED = """
import importlib.machinery, sys

class Without:
    # torch._C as it is where torch is built without USE_DISTRIBUTED
    def find_spec(self, name, path=None, target=None):
        if name != "torch._C":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            for attribute in [a for a in dir(module) if any(part in a for part in ("c10d", "rpc", "dist_autograd"))]:
                delattr(module, attribute)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Without())
import torch
assert not torch.distributed.is_available()
import gradsurgery as gs
surgery = gs.GradientAggregator("pcgrad", tasks=2)
z = torch.randn(3, 4, requires_grad=True)
a, b = surgery.split(z)
(a.sum() + b.square().sum()).backward()
for call in (lambda: gs.GradientAggregator("pcgrad", tasks=2, process_group=object()), lambda: surgery.join(torch.nn.Linear(1, 1))):
    try:
        call()
    except (RuntimeError, TypeError) as error:
        print(error)
"""


@pytest.mark.slow
def test_a_torch_without_distributed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_DISTRIBUTED)
    paths = [str(Path(gs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stderr
    assert "process_group: expected None, as this build of torch has no torch.distributed; found one." in run.stdout
    assert "model: join expected a DistributedDataParallel, found Linear" in run.stdout
