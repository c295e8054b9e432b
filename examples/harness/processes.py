"""The processes that torchrun or accelerate launch started: they train one model, each with its part of every batch.

What one process would sum over a batch is summed over the ranks' parts here. Alone, nothing is sent and nothing is changed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import RunError

T = TypeVar("T")
Outcome = tuple[Any, RunError | None]


class AgreedError(RunError):
    """An error that every rank raises, so that the first alone tells it."""


def launched() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or the only one."""
    return not launched() or int(os.environ.get("RANK", "0")) == 0  # without one `together` says what is missing


def local_rank() -> int:
    """This process's number on its machine, and that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


@contextmanager
def together() -> Iterator[None]:
    """A process group of all that were launched while the block runs: gloo for tensors on the CPU, nccl for those on GPUs.

    Raises:
        RunError: the launcher's environment variables are not all there.
    """
    if not launched():
        yield
        return
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise RunError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: expected {', '.join(missing)} beside it, as torchrun and accelerate launch "
            "set them, found none; start the processes by one of these, or unset WORLD_SIZE."
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for the others."""
    if world() > 1:
        largest(torch.zeros(()))


def average(value: Tensor) -> Tensor:
    """The mean over the ranks, differentiable: what a loss divides by, so that the mean of the ranks' losses is the batch's.

    A loss that is a mean over valid targets, Σ_r S_r / Σ_r n_r over all ranks, is the mean of S_r / average(n_r). What is a
    function of averages alone is the same on every rank, and its gradient the batch's, too.
    """
    if world() == 1:
        return value
    summed: Tensor = _Sum.apply(value)
    return summed / world() if summed.is_floating_point() else summed.double() / world()


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Each rank's loss depends on every rank's value: backwards, gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


def largest(value: Tensor) -> Tensor:
    """The largest over the ranks, element by element; without a gradient."""
    value = value.detach().clone()
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def anywhere(holds: bool) -> bool:
    """Whether it holds on any rank."""
    return bool(largest(torch.tensor(float(holds))))


def of_first(value: Any) -> Any:
    """What the first process has there."""
    told = [value]
    if world() > 1:
        dist.broadcast_object_list(told)
    return told[0]


def signalled(number: int | None) -> int | None:
    """The signal that any rank has received; None: none has."""
    return int(largest(torch.tensor(number or 0))) or None


def attempt(work: Callable[[], Any]) -> Outcome:
    """What `work` returns, or the RunError that it raises, for `agreed`."""
    try:
        return work(), None
    except RunError as error:
        return None, error


def agreed(outcome: Outcome) -> Any:
    """The result of an attempt that succeeded on every rank.

    Raises:
        RunError: it failed on one of them. Raised on all, so that none waits for another.
    """
    result, error = outcome
    if world() == 1:
        if error is not None:
            raise error
        return result
    told: list[str | None] = [None] * world()
    dist.all_gather_object(told, None if error is None else str(error))
    failed: dict[str, int] = {}
    for index, text in enumerate(told):
        if text is not None:
            failed.setdefault(text, index)
    if failed:
        alike = len(failed) == 1 and None not in told
        raise AgreedError("; ".join(text if alike else f"rank {index}: {text}" for text, index in failed.items())) from error
    return result


def part_of(count: int) -> slice:
    """This rank's part of so many samples: contiguous, in the order of the ranks."""
    return slice(count * rank() // world(), count * (rank() + 1) // world())
