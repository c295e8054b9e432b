"""PCGrad by every provider on the same gradients: checked against the oracle, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import torch
from cases import Case, gradients
from oracle import SMALL_NUMEL, check
from providers import PROVIDERS, Provider
from results import Row
from timing import Effort, interleave

import gradsurgery as gs


def surgery_rows(
    cases: Iterable[Case],
    effort: Effort,
    device: torch.device,
    providers: Sequence[Provider] = tuple(PROVIDERS.values()),
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """One row for each case and provider, with its error against the oracle; the times of a case come from the same rounds.

    Raises:
        AssertionError: a provider's result is wrong.
    """
    rows: list[Row] = []
    for case in cases:
        grads = gradients(case, device)
        point = {"tasks": case.tasks, "numel": case.numel, "dtype": case.dtype}
        calls, errors = {}, {}
        for provider in providers:
            reason = case.left_out(provider.name)
            if reason is not None:
                rows.append({"kind": "left out", **point, "provider": provider.name, "reason": reason})
                continue
            small = grads[:, :SMALL_NUMEL].contiguous()
            check(provider, provider.prepare(small), small)
            run = provider.prepare(grads)
            errors[provider.name] = check(provider, run, grads)
            calls[provider.name] = run
        conflicts = int((gs.gram(grads) < 0).sum()) / (case.tasks * (case.tasks - 1))
        for name, times in interleave(calls, effort, device).items():
            rows.append(
                {
                    "kind": "surgery",
                    **point,
                    "provider": name,
                    **asdict(times),
                    "floor_gb_per_s": case.floor_bytes / times.p50 / 1e9,
                    "error": errors[name],
                    "conflicts": conflicts,
                }
            )
        here = [row for row in rows[-len(providers) :] if row["kind"] == "surgery"]
        say(f"{case}: " + ", ".join(f"{row['provider']} {row['p50'] * 1e6:.1f} us" for row in here))
    return rows
