"""A script for one GRADSURGERY_CPU_CAPABILITY: prints digests of K and of coordinate-wise results, and counts of wrong 16-bit
conversions, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from ops.coordinatewise_calls import Call, calls
from ops.samples import Sample, maker, sample
from torch import Tensor

import gradsurgery as gs

OPS = torch.ops.gradsurgery
HALVES = (torch.bfloat16, torch.float16)


def digest(*tensors: Tensor) -> str:
    """SHA-256 over the tensors' bytes."""
    joined = hashlib.sha256()
    for tensor in tensors:
        joined.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return joined.hexdigest()


def samples(dtype: torch.dtype) -> dict[str, Sample]:
    """Gradients whose Gram matrices must have the same bits everywhere."""
    named = {f"T={T}": Sample([maker(dtype)(T, 3001)], T, stacked=True) for T in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)}
    named |= {layout: sample(layout, 5, dtype) for layout in ("layouts_differ", "lists_with_gaps", "many_small")}
    named["three blocks"] = Sample([maker(dtype)(3, 140_001)], 3, stacked=True)
    return named


def grams(dtype: torch.dtype) -> dict[str, str]:
    """Digest of K by sample."""
    return {name: digest(OPS.gram(s.grads, s.tasks, s.stacked)) for name, s in samples(dtype).items()}


def coordinatewise(dtype: torch.dtype) -> dict[str, str]:
    """Digest of the results by rule and number of tasks; leaks are multiples of 1/4, whose products with 24 bits are exact."""
    digests = {}
    for tasks in (2, 3, 4, 7, 8, 9, 16, 31, 40):
        given = Sample([maker(dtype)(tasks, 2501), maker(dtype)(tasks, 6)], tasks, stacked=True)
        rules = [call for call in calls(given) if not (call.rule == "graddrop" and call.options)]
        if dtype != torch.float64:
            rules.append(Call("graddrop", [t % 5 / 4 for t in range(tasks)]))
        for call in rules:
            out = given.empty()
            call.run(OPS, given, out)
            digests[f"T={tasks} {call}"] = digest(*(target.view(torch.uint8) for target in out))
    return digests


def same(a: Tensor, b: Tensor) -> Tensor:
    """Equal, any NaN like any other; a sum that starts at +0 never is -0."""
    return (a == b) | (a.isnan() & b.isnan())


def all_patterns(dtype: torch.dtype) -> Tensor:
    """The 65,536 values of a 16-bit type."""
    return torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)


def between(dtype: torch.dtype) -> Tensor:
    """float64 values on which rounding to a 16-bit type is decided: all its values, the midpoints, and their float32 neighbors."""
    values = all_patterns(dtype).double()
    finite = values[values.isfinite()].sort().values
    middle = ((finite[1:] + finite[:-1]) / 2).float()
    up, down = (torch.nextafter(middle, torch.tensor(direction)) for direction in (torch.inf, -torch.inf))
    largest = torch.finfo(dtype).max
    edge = torch.tensor([largest * (1 + torch.finfo(dtype).eps / 4), 1e39, 1e300, 5e-324, 0.0]).double()
    random = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double() * 2.0 ** torch.arange(-30, 20).repeat(400)
    return torch.cat([values, middle.double(), up.double(), down.double(), edge, -edge, random])


def wrong_conversions() -> dict[str, int]:
    """How many values differ from torch's conversion, reading and writing; both through one row of weight 1."""
    one = torch.ones(1, dtype=torch.float64)
    wrong = {}
    for dtype in HALVES:
        patterns = all_patterns(dtype)
        for wide in (torch.float64, torch.float32):
            out = torch.empty(65536, dtype=wide)
            OPS.combine_([out], [patterns], one)
            wrong[f"{dtype} to {wide}"] = int((~same(out, patterns.to(wide))).sum())
        copy = torch.empty_like(patterns)
        OPS.combine_([copy], [patterns], one)
        wrong[f"{dtype} to itself"] = int((~same(copy, patterns)).sum())
        for wide in (torch.float64, torch.float32):
            row = between(dtype).to(wide)
            out = torch.empty(len(row), dtype=dtype)
            OPS.combine_([out], [row], one)
            wrong[f"{wide} to {dtype}"] = int((~same(out, row.to(dtype))).sum())
        finite = patterns[patterns.double().isfinite()]
        squares = torch.stack([OPS.gram([finite[k : k + 1]], 1)[0, 0] for k in range(0, len(finite), 997)])
        wrong[f"{dtype} in gram"] = int((squares != finite[::997].double().square()).sum())
    return wrong


if __name__ == "__main__":
    report = {
        "capability": gs.build_info()["cpu_capability"],
        "grams": {str(dtype): grams(dtype) for dtype in (torch.float32, *HALVES)},
        "coordinatewise": {str(dtype): coordinatewise(dtype) for dtype in (torch.float64, torch.float32, *HALVES)},
        "wrong": wrong_conversions(),
    }
    print(json.dumps(report))
