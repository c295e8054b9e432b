"""A GPU's own time for gradients of every size, against what its memory allows: checked first, then timed by events.

The yardstick is the copy bandwidth that is measured in the same run. Weights that depend on all of G take (2T + 1) N b bytes: G
twice, and the result; (T + 1) N b where G stays on the chip between the two. K alone takes T N b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from cases import Case, gradients
from device_clock import device_clock, replayed
from device_step import StepPlan, device_step_rows
from oracle import ROUNDED, SMALL_NUMEL, check
from providers import PROVIDERS, Provider
from providers.compiled import compiled_providers
from providers.provider import Run, not_installed
from results import Row
from timing import Effort, interleave
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops.reference import random_order

RIVALS = ("explicit", "gram", "torchjd")  # of the providers, besides this library and what is compiled
GRAM_ERROR = 3e-6  # of K_ij, over |g_i| |g_j|; what torch.mm may be off by stands in oracle.py
NOT_CAPTURED = "takes its order from the host, or waits for the device, which a CUDA graph cannot"


@dataclass(frozen=True)
class DevicePlan:
    """What is measured on a GPU.

    Attributes:
        copy_bytes: of the buffer whose copy is the yardstick.
        cases: surgery and K, with the L2 cache flushed.
        cached: likewise, and also as they come, when the cache may hold what the call before has read: cases that it has room for.
        replayed: surgery in a CUDA graph, as they come.
        effort: for each call.
        replay_effort: for each replay; a sample is as many as last long enough.
        backend: of ``torch.compile``.
        step: training steps of a network.
    """

    copy_bytes: int
    cases: Sequence[Case]
    cached: Sequence[Case]
    replayed: Sequence[Case]
    effort: Effort
    replay_effort: Effort
    backend: str
    step: StepPlan


def device_rows(plan: DevicePlan, device: torch.device, say: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Everything; each row of a call carries its floors, and how much of its time they are.

    Raises:
        AssertionError: a result is wrong.
    """
    copy = copy_row(plan.copy_bytes, plan.effort, device)
    say(f"copies {copy['gb_per_s']:.0f} GB/s")
    rows = [copy]
    for case in [*plan.cases, *plan.cached]:
        calls = prepare(case, plan.backend, device)
        for flushed in (True, False) if case in plan.cached else (True,):
            rows += timed(case, calls, plan.effort, device, copy["gb_per_s"], flushed)
            say(line(case, rows[-len(calls) :]))
        rows += left_out(case)
    for case in plan.replayed:
        rows += replay_rows(case, plan.replay_effort, plan.backend, device)
        say(f"replay, {line(case, [row for row in rows if row['kind'] == 'replay' and _at(row, case)])}")
    return rows + device_step_rows(plan.step, device, say)


def copy_row(nbytes: int, effort: Effort, device: torch.device) -> Row:
    """``gb_per_s`` counts every byte twice: it is read, and written."""
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, effort, device, device_clock(device, flushed=True))["copy"]
    moved = 2 * source.nbytes
    return {"kind": "copy", "bytes": moved, **asdict(times), "gb_per_s": moved / times.p50 / 1e9}


@dataclass(frozen=True)
class Checked:
    """A call whose result was right, and the least that it has to move."""

    call: Callable[[], object]
    error: float
    floor_bytes: int
    on_chip_bytes: int


def prepare(case: Case, backend: str, device: torch.device) -> dict[tuple[str, str], Checked]:
    """(what, provider) -> the call, on gradients that all share."""
    torch.compiler.reset()  # code is kept for a few shapes only
    grads = gradients(case, device)
    N = case.numel * case.itemsize
    calls = {}
    for name, provider in _entered(backend).items():
        if _reason(case, name) is None:
            error, run = _checked(provider, grads)
            calls["surgery", name] = Checked(run, error, case.floor_bytes, (case.tasks + 1) * N)
    for name, product in PRODUCTS.items():
        calls["gram", name] = Checked(_bound(product, grads), _checked_gram(name, product, grads), case.tasks * N, case.tasks * N)
    return calls


def _entered(backend: str) -> dict[str, Provider]:
    return {name: PROVIDERS[name] for name in ("gradsurgery", *RIVALS)} | compiled_providers(backend)


def _reason(case: Case, name: str) -> str | None:
    """Why a provider is not measured, or None."""
    return not_installed(name) or case.left_out(name)


def left_out(case: Case) -> list[Row]:
    """Who is not measured, and why."""
    reasons = {name: _reason(case, name) for name in RIVALS}
    return [{"kind": "left out", **_point(case), "provider": name, "reason": reason} for name, reason in reasons.items() if reason]


PRODUCTS: Mapping[str, Callable[[Tensor], Tensor]] = {"gradsurgery": gs.gram, "gram": lambda grads: torch.mm(grads, grads.T)}
"""K by this library, and by PyTorch in the gradients' type. [T, N] -> [T, T]"""


def _bound(product: Callable[[Tensor], Tensor], grads: Tensor) -> Callable[[], Tensor]:
    return lambda: product(grads)


def _checked(provider: Provider, grads: Tensor) -> tuple[float, Run]:
    small = grads[:, :SMALL_NUMEL].contiguous()
    check(provider, provider.prepare(small), small)
    run = provider.prepare(grads)
    return check(provider, run, grads), run


def _checked_gram(name: str, product: Callable[[Tensor], Tensor], grads: Tensor) -> float:
    """The largest error of an entry of K, over the two norms.

    Raises:
        AssertionError: it is too large.
    """
    wide = grads.double()
    exact = wide @ wide.T
    norms = exact.diagonal().sqrt()
    error = float(((product(grads).double() - exact).abs() / torch.outer(norms, norms)).max())
    allowed = GRAM_ERROR if name == "gradsurgery" else ROUNDED
    if not error <= allowed:
        raise AssertionError(
            f"gram by {name}: off by {error:.1e} of float64 on {list(grads.shape)}, where {allowed:.0e} is allowed."
        )
    return error


def timed(
    case: Case, calls: Mapping[tuple[str, str], Checked], effort: Effort, device: torch.device, copied: float, flushed: bool
) -> list[Row]:
    """One row a call, from the same rounds; ``copied``: the copy bandwidth, in GB/s."""
    names = {f"{what} {provider}": (what, provider) for what, provider in calls}
    clock = device_clock(device, flushed)
    times = interleave({name: calls[key].call for name, key in names.items()}, effort, device, clock)
    rows = []
    for name, (what, provider) in names.items():
        checked, took = calls[what, provider], times[name]
        floors = {"floor": checked.floor_bytes, "on_chip_floor": checked.on_chip_bytes}
        shares = {f"of_{floor}": moved / (copied * 1e9) / took.p50 for floor, moved in floors.items()}
        point = {"kind": "device", "what": what, "provider": provider, **_point(case), "flushed": flushed}
        rows.append({**point, **asdict(took), **{f"{f}_bytes": b for f, b in floors.items()}, **shares, "error": checked.error})
    return rows


def _aggregator(grads: Tensor) -> Run:
    """With its counter of orders on the device, where each replay advances it."""
    surgery, out = gs.GradientAggregator("pcgrad", tasks=len(grads), seed=0), torch.empty_like(grads[0])

    def run() -> Tensor:
        surgery.aggregate(grads, out=out)
        return out

    return run


def _first_orders(tasks: int) -> list[list[int]]:
    found: list[list[int]] = random_order(torch.tensor([0, 0]), tasks).tolist()  # of (seed, step)
    return found


def replay_rows(case: Case, effort: Effort, backend: str, device: torch.device) -> list[Row]:
    """Surgery in a CUDA graph: seconds a replay, launches included; who cannot be captured is said."""
    torch.compiler.reset()
    grads = gradients(case, device)
    own = Provider("gradsurgery", "gradsurgery", _aggregator, _first_orders)
    errors, calls = {}, {}
    for name, provider in ({"gradsurgery": own} | compiled_providers(backend)).items():
        errors[name], run = _checked(provider, grads)
        calls[name] = replayed(run, device)
    times = interleave(calls, effort, device, device_clock(device, flushed=False))
    rows = [{"kind": "replay", "provider": name, **_point(case), **asdict(t), "error": errors[name]} for name, t in times.items()]
    return rows + [{"kind": "left out", **_point(case), "provider": name, "reason": NOT_CAPTURED} for name in RIVALS]


def line(case: Case, rows: Sequence[Row]) -> str:
    """For the log."""
    cache = " flushed" if rows[0].get("flushed") else ""
    shown = ", ".join(f"{row.get('what', '')} {row['provider']} {row['p50'] * 1e6:.1f} us".strip() for row in rows)
    return f"{case}{cache}: {shown}"


def _point(case: Case) -> dict[str, Any]:
    return {"tasks": case.tasks, "numel": case.numel, "dtype": case.dtype}


def _at(row: Row, case: Case) -> bool:
    return all(row[key] == value for key, value in _point(case).items())
