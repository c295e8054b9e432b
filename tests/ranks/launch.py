"""Processes of a test that talk to each other: gloo on this machine, each started from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)  # a machine with other work is slow; tests of the time-out take a short one
LONGEST = 300.0  # s, for one process

PRELOADED = ["gradsurgery", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
"""What takes seconds to import: once for all processes."""


class RankError(AssertionError):
    """What went wrong on a rank, with its traceback."""


def ranks(world: int, work: Callable[..., Any], *arguments: Any, timeout: timedelta = TIMEOUT, **environment: str) -> list[Any]:
    """What ``work(rank, *arguments)`` returned on each of ``world`` processes of one group. [world]

    Args:
        world: how many.
        work: a function of a module (no test module: processes import it by name).
        arguments: for it, picklable.
        timeout: of the default group.
        environment: variables that the processes see.

    Raises:
        RankError: one of them raised, or ended in another way.
    """
    outcomes = attempts(world, work, *arguments, timeout=timeout, **environment)
    told = [_told(rank, outcome) for rank, outcome in enumerate(outcomes) if not isinstance(outcome, tuple)]
    if told:
        raise RankError("\n".join(told))
    return [outcome[0] for outcome in outcomes]


def attempts(world: int, work: Callable[..., Any], *arguments: Any, timeout: timedelta = TIMEOUT, **environment: str) -> list[Any]:
    """As ``ranks``, for each process: (what it returned,), the traceback of what it raised, or the exit status it ended with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        mine = {"rank_count": world, "folder": folder, "timeout": timeout, "environment": environment}
        processes = [context.Process(target=_run, args=(rank, mine, work, arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LONGEST)
            process.kill()  # what waits elsewhere than in a collective waits for ever
            process.join()
        return [_outcome(Path(folder, f"{rank}.pt"), process.exitcode) for rank, process in enumerate(processes)]


def _told(rank: int, outcome: object) -> str:
    return f"rank {rank}: {outcome}" if isinstance(outcome, str) else f"rank {rank} ended with status {outcome}"


def _outcome(file: Path, status: int | None) -> Any:
    return torch.load(file, weights_only=False) if file.is_file() else status


def _run(rank: int, mine: dict[str, Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(mine["environment"])
    torch.set_num_threads(1)
    if (level := mine["environment"].get("TORCH_DISTRIBUTED_DEBUG")) is not None:
        assert level == "DETAIL"
        dist.set_debug_level(dist.DebugLevel.DETAIL)  # torch read the environment when it was imported
    store = dist.FileStore(os.path.join(mine["folder"], "store"), mine["rank_count"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=mine["rank_count"], timeout=mine["timeout"])
    try:
        outcome: Any = (work(rank, *arguments),)
    except BaseException:
        outcome = traceback.format_exc()
    file = Path(mine["folder"], f"{rank}.pt")
    torch.save(outcome, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
    os._exit(0)  # no waiting for ranks that have ended: what matters is in the file
