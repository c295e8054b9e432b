"""Runs every benchmark and writes one results file: ``python benchmarks/run.py [--quick] [--device auto]``.

The README's table and the plot are made from committed results by ``table.py`` and ``plot.py``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bandwidth import read_rows
from by_sample import Batch as SampleBatch
from by_sample import sample_rows
from cases import DTYPES, SMALL, Case, grid
from device import DevicePlan, device_rows
from device_step import StepPlan, deep_trunk
from distances import distance_rows
from environment import Disturbance, describe, slug
from memory import memory_rows, parameter_memory_rows, step_memory_rows
from parameter_step import parameter_rows, residual_trunk, small_trunk
from results import FOLDER, Results, Row
from solvers import TASKS, solver_rows
from step import Batch, step_rows
from surgery import surgery_rows
from timing import Effort
from torch import nn


@dataclass(frozen=True)
class Plan:
    """What a run measures, and for how long."""

    cases: list[Case]
    effort: Effort
    sample_batches: list[SampleBatch]
    solver_tasks: Sequence[int]
    solver_effort: Effort  # a few of the solvers that are compared take a second a round
    read_cases: list[Case]
    probe_bytes: int
    step_effort: Effort  # steps are long and the differences small: many rounds
    step_batch: Batch
    memory_cases: list[Case]
    memory_batch: Batch
    parameter_tasks: Sequence[int]
    parameter_effort: Effort
    parameter_batch: Batch
    parameter_memory_tasks: Sequence[int]
    distance_steps: int
    trunk: Callable[[], nn.Sequential]  # of what is timed and trained in parameter space; memory is always that of ResNet-18
    device: DevicePlan


FULL = Plan(
    cases=grid(),
    effort=Effort(sample_s=1e-3, budget_s=2.0, rounds=(9, 300)),
    sample_batches=[SampleBatch(4, 256, 768)],
    solver_tasks=TASKS,
    solver_effort=Effort(sample_s=1e-3, budget_s=0.5, rounds=(9, 300)),
    read_cases=[*(Case(tasks, 10_000_000) for tasks in (2, 4, 8)), Case(4, 30_000_000)],
    probe_bytes=400_000_000,
    step_effort=Effort(sample_s=0.0, budget_s=20.0, rounds=(60, 300)),
    step_batch=Batch(count=8, size=64),
    memory_cases=[Case(tasks, 10_000_000) for tasks in (2, 4, 8, 16)],
    memory_batch=Batch(count=8, size=128),
    parameter_tasks=(1, 2, 3, 6),
    parameter_effort=Effort(sample_s=0.0, budget_s=240.0, rounds=(6, 100)),
    parameter_batch=Batch(count=16, size=96),
    parameter_memory_tasks=(1, 2, 3, 6),
    distance_steps=48,
    trunk=residual_trunk,
    device=DevicePlan(
        copy_bytes=1 << 30,
        cases=[
            *(Case(tasks, 100_000_000 // tasks, dtype) for tasks in (2, 4, 8) for dtype in DTYPES),
            *(Case(3, 25_000_000, dtype) for dtype in DTYPES),
        ],
        cached=[Case(3, numel) for numel in (10_000, 100_000, 1_000_000, 3_300_000)],  # up to 40 MB
        replayed=[Case(3, 64 * 768, dtype) for dtype in DTYPES],  # a batch of 64 representations
        effort=Effort(sample_s=0.0, budget_s=0.3, rounds=(10, 100)),
        replay_effort=Effort(sample_s=1e-3, budget_s=0.3, rounds=(10, 100)),
        backend="inductor",
        step=StepPlan(
            build=deep_trunk,
            tasks=3,
            batch=Batch(count=64, size=224),
            checked=Batch(count=16, size=224),
            effort=Effort(sample_s=0.0, budget_s=3.0, rounds=(10, 50)),
        ),
    ),
)
QUICK = Plan(
    cases=SMALL,
    effort=Effort(sample_s=2e-4, budget_s=0.1, rounds=(3, 20)),
    sample_batches=[SampleBatch(3, 8, 64)],
    solver_tasks=(2, 3),
    solver_effort=Effort(sample_s=2e-4, budget_s=0.02, rounds=(2, 20)),
    read_cases=[Case(4, 100_000)],
    probe_bytes=4_000_000,
    step_effort=Effort(sample_s=0.0, budget_s=0.1, rounds=(3, 20)),
    step_batch=Batch(count=2, size=32),
    memory_cases=[Case(4, 1_000_000)],
    memory_batch=Batch(count=2, size=64),
    parameter_tasks=(2,),
    parameter_effort=Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)),
    parameter_batch=Batch(count=2, size=32),
    parameter_memory_tasks=(1,),
    distance_steps=3,
    trunk=small_trunk,
    device=DevicePlan(
        copy_bytes=4_000_000,
        cases=[Case(2, 20_000), Case(4, 20_000, "bfloat16")],
        cached=[Case(3, 5_000)],
        replayed=[Case(3, 2_000)],
        effort=Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)),
        replay_effort=Effort(sample_s=2e-4, budget_s=0.0, rounds=(2, 2)),
        backend="aot_eager",  # inductor would compile for a minute
        step=StepPlan(
            build=small_trunk,
            tasks=3,
            batch=Batch(count=2, size=32),
            checked=Batch(count=2, size=32),
            effort=Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2)),
        ),
    ),
)

PARTS: dict[str, Callable[[Plan, torch.device], list[Row]]] = {
    "surgery": lambda plan, device: surgery_rows(plan.cases, plan.effort, device, say=say),
    "samples": lambda plan, device: sample_rows(plan.sample_batches, plan.effort, device, say=say),
    "solvers": lambda plan, device: solver_rows(plan.solver_tasks, plan.solver_effort, device, say=say),
    "read": lambda plan, device: read_rows(plan.read_cases, plan.effort, device, plan.probe_bytes),
    "step": lambda plan, device: step_rows(plan.step_effort, device, plan.step_batch),
    "memory": lambda plan, device: memory_rows(plan.memory_cases, device) + step_memory_rows(device, plan.memory_batch),
    "parameters": lambda plan, device: [
        *parameter_rows(plan.parameter_tasks, plan.parameter_effort, device, plan.parameter_batch, plan.trunk, say=say),
        *parameter_memory_rows(device, plan.parameter_batch, plan.parameter_memory_tasks),
        *distance_rows(plan.distance_steps, device, plan.parameter_batch, plan.trunk, say=say),
    ],
    "device": lambda plan, device: device_rows(plan.device, device, say=say),
}


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few samples: shows that everything runs, no more")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=tuple(PARTS), help="parts to run")
    parser.add_argument("--out", type=Path, help="default: results/<device>-<date>.json here, or a temporary file with --quick")
    a = parser.parse_args()
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if a.device == "auto" else a.device)
    environment = describe(device, a.quick)
    disturbance = Disturbance()
    rows: list[Row] = []
    for part in a.only:
        if part == "device" and device.type == "cpu" and not a.quick:
            say("device: left out, as it tells of a GPU, and torch is told to use the CPU, or finds no GPU")
            continue
        say(f"{part} ...")
        rows += PARTS[part](QUICK if a.quick else FULL, device)
    environment["others_share"] = disturbance.share()
    folder = Path(tempfile.gettempdir()) if a.quick else FOLDER
    path = a.out or folder / f"{slug(environment)}.json"
    Results(path, environment, rows).write()
    if environment["others_share"] is not None:
        say(f"other processes took {environment['others_share']:.0%} of the CPUs' time meanwhile")
    say(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
