"""The processes that make one step together: what they agree on at the start, and K over all of them in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gradsurgery.capture.grouping import SAMPLE
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.methods import Method
from gradsurgery.options import check_choice

SyncMode = Literal["global", "local"]

Parts = Literal["samples", "coordinates"]

DECIDED = ("gram", "scalarization")
"""Families of methods whose weights follow from K, which is the same on every rank."""


class Whole(NamedTuple):
    """What the ranks know together of one step.

    Attributes:
        gram: K over all of them. [T, T] or [G, T, T] float64
        present: which tasks some rank has. [T]
        losses: the means over the ranks of the tasks' losses, NaN where no rank has the task; None where none were asked. [T]
    """

    gram: Tensor
    present: tuple[bool, ...]
    losses: Tensor | None


class Ranks:
    """The ranks whose batches make one step, with a communicator of their own.

    In every step the ranks hold parts of one gradient a task. Of representations each has the rows of its own samples: the loss of
    a task is the mean of the ranks' losses, as DistributedDataParallel and FSDP take it, its gradient at the features of rank r is
    g_t,r / R, and so

        K = 1/R² Σ_r K_r

    of the ranks' own Gram matrices: T(T+1)/2 doubles, whatever the batch and the model. Every rank receives the same bits and
    solves by itself, so that the weights are the same without being sent.

    The communicator is this object's own, so that the order of its messages does not depend on those of a wrapped model, which
    may differ from rank to rank where tasks are absent. Making it, and comparing what the ranks were given, is collective. It has
    the backends and the time-out of the group that it is made after.

    Args:
        group: a process group, or a DeviceMesh all of whose dimensions divide the batch.

    Raises:
        TypeError: neither of the two.
        ValueError: this process is no member.
        RuntimeError: another member did not come here.

    Attributes:
        size: R, the number of ranks.
        rank: this process's number among them, from 0.
        members: their global numbers, ascending. [R]
        group: the communicator.
        checks: whether weights are compared over the ranks in every step (TORCH_DISTRIBUTED_DEBUG=DETAIL).
    """

    def __init__(self, group: dist.ProcessGroup | DeviceMesh) -> None:
        self.members = _members(group)
        me = dist.get_rank()
        if me not in self.members:
            raise ValueError(
                f"process_group: expected a group that this process is a member of, found rank {me}, members {self.members}."
            )
        self.size, self.rank = len(self.members), self.members.index(me)
        groups = [group.get_group(d) for d in range(group.ndim)] if isinstance(group, DeviceMesh) else [group]
        like = groups[0]
        with self.named("new_group", "for GradientAggregator"):
            _align_names(groups)
            made = dist.new_group(
                self.members,
                _timeout(like),
                dist.get_backend_config(like),
                use_local_synchronization=True,  # those outside of the group take no part
                group_desc="gradsurgery",
            )
        assert isinstance(made, dist.ProcessGroup)
        self.group = made
        self.checks = dist.get_debug_level() == dist.DebugLevel.DETAIL  # type: ignore[attr-defined]
        self._places: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a communicator is of the process, not of the object

    def __reduce__(self) -> Any:
        raise TypeError("process_group: a communicator cannot be pickled; save the state_dict() of what has it instead.")

    # --- what is agreed on --------------------------------------------------------------------------------------------------

    def agree(self, told: Mapping[str, object], owner: str) -> None:
        """Compares what every rank was given, so that a difference is named here rather than hanging later.

        Raises:
            ValueError: on every rank, where one differs.
        """
        every: list[Any] = [None] * self.size
        with self.named("all_gather", f"of {owner}'s options"):
            dist.all_gather_object(every, {name: _comparable(value) for name, value in told.items()}, group=self.group)
        differing = []
        for name in dict.fromkeys(name for other in every for name in other):
            values = [other.get(name, "none") for other in every]
            if len(set(values)) > 1:
                found = "; ".join(f"rank {rank}: {value}" for rank, value in zip(self.members, values, strict=True))
                differing.append(f"{name}: expected the same on every rank, found {found}.")
        if differing:
            raise ValueError(" ".join(differing))

    @contextmanager
    def named(self, collective: str, what: str) -> Iterator[None]:
        """Says which exchange failed, where a rank has died or did not come before the group's time-out."""
        try:
            yield
        except torch.OutOfMemoryError:  # no other rank's doing
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"{collective} {what} over the ranks {self.members} failed on rank {self.members[self.rank]}: {error}. Another "
                "rank has ended, hangs, or never came here (its own error, if it has one, says why), or the group's backend does "
                "not serve the device."
            ) from error

    def check_same(self, weights: Tensor, step: int) -> None:
        """Compares the weights bit by bit; collective, for TORCH_DISTRIBUTED_DEBUG=DETAIL.

        Raises:
            RuntimeError: on every rank, where one differs.
        """
        every = [torch.empty_like(weights, memory_format=torch.contiguous_format) for _ in self.members]
        with self.named("all_gather", f"of the weights of step {step}"):
            dist.all_gather(every, weights.contiguous(), group=self.group)
        bits = [tuple(w.view(torch.int64).flatten().tolist()) for w in every]
        if len(set(bits)) > 1:
            found = "; ".join(f"rank {rank}: {w.tolist()}" for rank, w in zip(self.members, every, strict=True))
            raise RuntimeError(
                f"weights: expected the same bits on every rank in step {step}, found {found}. The method's memory differs: load "
                "the same state_dict() on every rank."
            )

    # --- K ------------------------------------------------------------------------------------------------------------------

    def gram(self, local: Tensor, here: Sequence[bool], parts: Parts, step: int, losses: Tensor | None = None) -> Whole:
        """K over all ranks, from one all-reduce of its upper triangle.

        Which tasks some rank has is in the same message. Where this rank lacks a task, it sends −0 on the diagonal; a rank that has
        the task sends a sum of squares, which is +0 at least, and −0 + −0 = −0, but −0 + 0 = 0: the sum is −0 where all lack it.
        That is read, which waits for the device, on a rank that lacks a task; the others know that all are present.

        Args:
            local: this rank's part of K, float64. [T, T] or [G, T, T]
            here: which tasks this rank has. [T]
            parts: "samples", of a batch whose loss is the mean over the ranks, or "coordinates", whose products just add up.
            step: its number, for errors.
            losses: this rank's, float64, for methods that ask for them: T doubles more. [T]

        Raises:
            RuntimeError: a rank did not come; with NCCL, whose watchdog ends the process instead, only if it was told to wait.
        """
        sent = self._sent(local, here, losses)
        with self._named_gram(sent, step):
            dist.all_reduce(sent, group=self.group)
        return self._received(sent, local.shape, here, parts)

    def ask(
        self, local: Tensor, here: Sequence[bool], parts: Parts, step: int, losses: Tensor | None = None
    ) -> Callable[[], Whole]:
        """``gram`` for a rank that has other messages to send before the others come to this one; what is returned waits for it."""
        sent = self._sent(local, here, losses)
        with self._named_gram(sent, step):
            work = dist.all_reduce(sent, group=self.group, async_op=True)
        assert work is not None

        def answer() -> Whole:
            with self._named_gram(sent, step):
                work.wait()
            return self._received(sent, local.shape, here, parts)

        return answer

    def _named_gram(self, sent: Tensor, step: int) -> Any:
        return self.named("all_reduce", f"of the Gram matrix of step {step} ({sent.numel()} doubles)")

    def _sent(self, local: Tensor, here: Sequence[bool], losses: Tensor | None) -> Tensor:
        """The upper triangle of K, with −0 for the tasks that are not here, and the losses. [T(T+1)/2], with groups G of them"""
        if not all(here):
            mask = torch.tensor(here, device=local.device)
            local = local.clone()
            diagonal = local.diagonal(dim1=-2, dim2=-1)
            diagonal.copy_(torch.where(mask | (diagonal != 0), diagonal, -0.0))  # a shard has the others' parts, too
            losses = None if losses is None else torch.where(mask, losses, 0.0)
        upper, _ = self._triangle(local.shape[-1], local.device)
        triangle = local.flatten(-2).index_select(-1, upper).flatten()
        return triangle if losses is None else torch.cat([triangle, losses])

    def _received(self, sums: Tensor, shape: torch.Size, here: Sequence[bool], parts: Parts) -> Whole:
        """The symmetric matrices whose upper triangles were added, and what else was."""
        T = shape[-1]
        _, from_upper = self._triangle(T, sums.device)
        length = shape[:-2].numel() * T * (T + 1) // 2
        triangle, losses = sums[:length], sums[length:]
        K = triangle.view(*shape[:-2], -1).index_select(-1, from_upper).view(shape)
        if parts == "samples":
            K = K / self.size**2
        mean_losses = losses / self.size if losses.numel() else None
        if all(here):
            return Whole(K, tuple(here), mean_losses)
        diagonal = K.reshape(-1, T, T)[0].diagonal()
        present = ~(diagonal.signbit() & (diagonal == 0))
        if mean_losses is not None:
            mean_losses = torch.where(present, mean_losses, torch.nan)
        return Whole(K + 0.0, tuple(present.tolist()), mean_losses)  # no −0 goes on; elsewhere K has none

    def _triangle(self, tasks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places of the upper triangle in a matrix row by row [T(T+1)/2], and of the matrix in the triangle [T*T]."""
        key = (tasks, device)
        if key not in self._places:
            row, column = torch.triu_indices(tasks, tasks, device="cpu")
            place = torch.empty(tasks, tasks, dtype=torch.int64, device="cpu")
            place[row, column] = place[column, row] = torch.arange(len(row), device="cpu")
            self._places[key] = (row * tasks + column).to(device), place.flatten().to(device)
        return self._places[key]


def several_processes() -> bool:
    """Whether this process is one of several that torch.distributed connects."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def checked_ranks(group: Any, sync: SyncMode, method: Method, names: TaskNames, options: Mapping[str, object]) -> Ranks | None:
    """The ranks of an aggregator's process group, which were given the same; None without a group.

    Args:
        group: a process group, a DeviceMesh, or None.
        sync: the argument of that name.
        method: the method.
        names: of the tasks.
        options: further arguments, by name.

    Raises:
        ValueError, TypeError: no such group; arguments that do not go with one, or that differ from rank to rank.
        RuntimeError: another member did not come here.
    """
    check_choice("sync", sync, ("global", "local"))
    if group is None:
        if sync != "global":
            raise ValueError(
                f"sync: expected 'global' without a process group, found {sync!r}; pass process_group=, which is None, too, where "
                "torch.distributed.group.WORLD is read before init_process_group()."
            )
        return None
    if sync == "global":
        check_method(method)
        if options.get("group_by") == SAMPLE:
            raise ValueError(
                "process_group: expected None with group_by='sample', as every sample is on one rank alone; leave it out."
            )
    if not names.declared:
        raise ValueError(
            "tasks: expected their names, or their number, with process_group=, so that K is of the same tasks on every rank."
        )
    ranks = Ranks(group)
    of_method = {name: getattr(method, name) for name in method.spec.options}
    told = {"tasks": names.known, "method": method.spec.name, **of_method, "sync": sync, **options}
    try:
        ranks.agree(told, "GradientAggregator")
    except ValueError:
        dist.destroy_process_group(ranks.group)  # on every rank: nobody would use it
        raise
    return ranks


def check_method(method: Method) -> None:
    """Raises unless K alone decides the method's weights.

    Raises:
        ValueError: a method that needs more than K.
    """
    spec = method.spec
    if spec.family == "coordinatewise":
        raise ValueError(
            f"process_group: expected a method that K decides, found {spec.name!r}, which treats every coordinate by itself: at a "
            "representation no two ranks' coordinates meet, so leave process_group out there; on parameters it is not supported."
        )
    if spec.family not in DECIDED:
        raise ValueError(
            f"process_group: expected a method that K decides (families {', '.join(DECIDED)}), found {spec.name!r} of family "
            f"{spec.family!r}, which keeps or compares whole gradients."
        )


def _comparable(value: object) -> str:
    """What is the same on every rank where the value is: numbers without their device, functions without their address."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, Method):
        options = ", ".join(f"{name}={_comparable(getattr(value, name))}" for name in value.spec.options)
        return f"{value.spec.name}({options})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_comparable(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_comparable(value[key])}' for key in sorted(value, key=str))}}}"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def _members(group: Any) -> list[int]:
    if not dist.is_available():
        raise RuntimeError("process_group: expected None, as this build of torch has no torch.distributed; found one.")
    if isinstance(group, DeviceMesh):
        return sorted(int(rank) for rank in group.mesh.flatten().tolist())
    if isinstance(group, dist.ProcessGroup):
        return sorted(dist.get_process_group_ranks(group))
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: expected a group that this process is a member of, found that it is none.")
    raise TypeError(
        f"process_group: expected a torch.distributed process group or a DeviceMesh, found {type(group).__name__}. For all "
        "processes pass torch.distributed.group.WORLD, after init_process_group()."
    )


def _align_names(groups: Sequence[dist.ProcessGroup]) -> None:
    """Lets the members of groups, which together have all ranks, find the same name for the next group that they make.

    torch names a group by how many its process has made, and those who have made one for some ranks alone would wait for the others
    under another name.
    """
    made = getattr(dist.distributed_c10d, "_world", None)
    counts = [getattr(made, "group_count", 0)]
    for group in groups:
        every: list[Any] = [None] * group.size()
        dist.all_gather_object(every, max(counts), group=group)
        counts = every
    if made is not None:
        made.group_count = max(counts)


def _timeout(group: dist.ProcessGroup) -> timedelta | None:
    """The shortest of a group's backends; None, which is torch's default, where torch does not tell (no public name does)."""
    try:
        return min(group._get_backend(device).options._timeout for device in group._device_types)
    except (AttributeError, RuntimeError, ValueError):
        return None
