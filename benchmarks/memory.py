"""Peak memory, each measurement in a process of its own: what the process holds at most above what it held before.

On the CPU this is the kernel's high-water mark of resident memory (Linux), so every library's buffers count, give or take the 0.3
MB by which the kernel's counters lag; on CUDA it is the caching allocator's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from cases import Case, gradients
from parameter_step import CONTENDERS, entered, small_trunk
from parameter_step import Experiment as ParameterExperiment
from providers import PROVIDERS
from results import Row
from step import FORMS, Batch, Experiment

Measure = Callable[[], int]
CALLS = 3


def measure_from_here(device: torch.device) -> Measure:
    """A function that tells the peak, in bytes, since this call above what was held at this call."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - held
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    resident = _status("VmRSS")
    return lambda: max(_status("VmHWM") - resident, 0)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def surgery_memory(provider: str, case: Case, device: torch.device) -> Row:
    """``extra_bytes``: preparing and a first call, result included; ``call_bytes``: another call, on top of what is kept."""
    prepare = PROVIDERS[provider].prepare
    warm = gradients(Case(case.tasks, min(case.numel, 200_000), case.dtype), device)
    prepare(warm)()  # thread pools, lazily loaded libraries
    grads = gradients(case, device)
    extra = measure_from_here(device)
    run = prepare(grads)
    run()
    extra_bytes = extra()
    call = measure_from_here(device)
    run()
    row = {"kind": "memory", "provider": provider, "tasks": case.tasks, "numel": case.numel, "dtype": case.dtype}
    return {**row, "extra_bytes": extra_bytes, "call_bytes": call()}


def step_memory(form: str, device: torch.device, batch: Batch) -> Row:
    """``extra_bytes`` of one training step above the model, its gradients' owners and the batch."""
    experiment = Experiment(device, batch, dense=True)
    step = experiment.steps()[form]
    step()
    experiment.optimizer.zero_grad()
    extra = measure_from_here(device)
    step()
    return {"kind": "step memory", "form": form, **experiment.point, "extra_bytes": extra()}


def parameter_memory(form: str, device: torch.device, batch: Batch, tasks: int) -> Row:
    """``extra_bytes`` over several steps from the first, above the model and the batch: what is kept between steps counts."""
    contender = CONTENDERS[form]
    small = ParameterExperiment(device, Batch(2, 32), tasks, small_trunk)
    contender.call(small)()  # thread pools, lazily loaded libraries
    experiment = ParameterExperiment(device, batch, tasks)
    CONTENDERS["plain"].call(experiment)()
    experiment.release()
    call = contender.call(experiment)
    extra = measure_from_here(device)
    for _ in range(CALLS):
        call()
    return {"kind": "parameter memory", "form": form, **experiment.point, "extra_bytes": extra()}


def in_a_child(arguments: list[str]) -> Row:
    """The row that this module prints when run with these arguments."""
    # Freed blocks go back to the system at once, so that resident memory is memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def memory_rows(cases: list[Case], device: torch.device) -> list[Row]:
    """Every provider on every case, a process each."""
    return [
        in_a_child(["surgery", str(device), provider, str(case.tasks), str(case.numel), case.dtype])
        for case in cases
        for provider in PROVIDERS
        if case.left_out(provider) is None
    ]


def step_memory_rows(device: torch.device, batch: Batch) -> list[Row]:
    """Every form of the training step, a process each."""
    return [in_a_child(["step", str(device), form, str(batch.count), str(batch.size)]) for form in FORMS]


def parameter_memory_rows(device: torch.device, batch: Batch, tasks: Sequence[int]) -> list[Row]:
    """Every way to the gradients in parameter space, a process each."""
    point = [str(batch.count), str(batch.size)]
    return [in_a_child(["parameters", str(device), form, *point, str(T)]) for T in tasks for form in entered(T)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    surgery = kinds.add_parser("surgery")
    surgery.add_argument("device", type=torch.device)
    surgery.add_argument("provider", choices=PROVIDERS)
    surgery.add_argument("tasks", type=int)
    surgery.add_argument("numel", type=int)
    surgery.add_argument("dtype")
    step = kinds.add_parser("step")
    parameters = kinds.add_parser("parameters")
    for kind, forms in ((step, FORMS), (parameters, CONTENDERS)):
        kind.add_argument("device", type=torch.device)
        kind.add_argument("form", choices=forms)
        kind.add_argument("count", type=int)
        kind.add_argument("size", type=int)
    parameters.add_argument("tasks", type=int)
    a = parser.parse_args()
    if a.kind == "surgery":
        row = surgery_memory(a.provider, Case(a.tasks, a.numel, a.dtype), a.device)
    elif a.kind == "step":
        row = step_memory(a.form, a.device, Batch(a.count, a.size))
    else:
        row = parameter_memory(a.form, a.device, Batch(a.count, a.size), a.tasks)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
