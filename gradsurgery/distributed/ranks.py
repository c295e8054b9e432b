"""The processes that make one step together: what they agree on at the start, and K over all of them in every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

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


class Ranks:
    """The ranks whose batches make one step, with a communicator of their own.

    In every step the ranks hold parts of one gradient a task. Of representations each has the rows of its own samples: the loss of
    a task is the mean of the ranks' losses, as DistributedDataParallel and FSDP take it, its gradient at the features of rank r is
    g_t,r / R, and so

        K = 1/R² Σ_r K_r

    of the ranks' own Gram matrices: T(T+1)/2 doubles, whatever the batch and the model. Every rank receives the same bits and
    solves by itself, so that the weights are the same without being sent.

    The communicator is this object's own, so that the order of its messages does not depend on those of a wrapped model, which
    may differ from rank to rank where tasks are absent. Making it, and comparing what the ranks were given, is collective.

    Args:
        group: a process group, or a DeviceMesh all of whose dimensions divide the batch.

    Raises:
        TypeError: neither of the two.
        ValueError: this process is no member.

    Attributes:
        size: R, the number of ranks.
        rank: this process's number among them, from 0.
        members: their global numbers. [R]
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
        backend, timeout = _backend_and_timeout(group)
        made = dist.new_group(self.members, timeout, backend, use_local_synchronization=True, group_desc="gradsurgery")
        assert isinstance(made, dist.ProcessGroup)
        self.group = made
        self.size, self.rank = len(self.members), self.members.index(me)
        self.checks = dist.get_debug_level() == dist.DebugLevel.DETAIL  # type: ignore[attr-defined]
        self._upper: dict[tuple[int, torch.device], Tensor] = {}

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a communicator is of the process, not of the object

    def __reduce__(self) -> Any:
        raise TypeError("process_group: a communicator cannot be pickled; save the aggregator's state_dict() instead.")

    # --- what is agreed on --------------------------------------------------------------------------------------------------

    def agree(self, told: Mapping[str, object], owner: str) -> None:
        """Compares what every rank was given, so that a difference is named here rather than hanging later.

        Raises:
            ValueError: on every rank, where one differs.
        """
        mine = {name: repr(value) for name, value in told.items()}
        every: list[Any] = [None] * self.size
        with self.named("all_gather", f"of {owner}'s options"):
            dist.all_gather_object(every, mine, group=self.group)
        for name in mine:
            values = [other.get(name) for other in every]
            if len(set(values)) > 1:
                found = "; ".join(f"rank {rank}: {value}" for rank, value in zip(self.members, values, strict=True))
                raise ValueError(f"{name}: expected the same on every rank, found {found}.")

    @contextmanager
    def named(self, collective: str, what: str) -> Iterator[None]:
        """Says which exchange failed, where a rank has died or did not come before the group's time-out."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"{collective} {what} over the ranks {self.members} failed on rank {self.members[self.rank]}: {error}. Another "
                "rank has ended, hangs, or never came here; its own error, if it has one, says why."
            ) from error

    def check_same(self, weights: Tensor, step: int) -> None:
        """Compares the weights bit by bit; collective, for TORCH_DISTRIBUTED_DEBUG=DETAIL.

        Raises:
            RuntimeError: on every rank, where one differs.
        """
        every = [torch.empty_like(weights) for _ in self.members]
        with self.named("all_gather", "of the weights"):
            dist.all_gather(every, weights.contiguous(), group=self.group)
        bits = [tuple(w.view(torch.int64).flatten().tolist()) for w in every]
        if len(set(bits)) > 1:
            found = "; ".join(f"rank {rank}: {w.tolist()}" for rank, w in zip(self.members, every, strict=True))
            raise RuntimeError(f"weights: expected the same bits on every rank in step {step}, found {found}.")

    # --- K ------------------------------------------------------------------------------------------------------------------

    def gram(self, local: Tensor, here: Sequence[bool], parts: Parts) -> tuple[Tensor, tuple[bool, ...]]:
        """K over all ranks, from one all-reduce of its upper triangle, and which tasks some rank has. [T, T] or [G, T, T]; [T]

        The sign of a diagonal zero says whether a task is absent: −0 where this rank lacks it, and −0 + 0 = 0. It is read, which
        waits for the device, on a rank that lacks a task; the others know that all are present.

        Args:
            local: this rank's part of K, float64. [T, T] or [G, T, T]
            here: which tasks this rank has. [T]
            parts: "samples", of a batch whose loss is the mean over the ranks, or "coordinates", whose products just add up.
        """
        sent = self._packed(local, here)
        with self.named("all_reduce", f"of the Gram matrix ({sent.numel()} doubles)"):
            dist.all_reduce(sent, group=self.group)
        K = self._unpacked(sent / self.size**2 if parts == "samples" else sent, local.shape)
        if all(here):
            return K, tuple(here)
        diagonal = K.reshape(-1, *K.shape[-2:])[0].diagonal()
        return K + 0.0, tuple((~(diagonal.signbit() & (diagonal == 0))).tolist())

    def _packed(self, local: Tensor, present: Sequence[bool]) -> Tensor:
        """The upper triangle of K, with −0 for the tasks that are not here. [T(T+1)/2] or [G, T(T+1)/2]"""
        if not all(present):
            here = torch.tensor(present, device=local.device)
            diagonal = local.diagonal(dim1=-2, dim2=-1)
            local = local.clone()
            local.diagonal(dim1=-2, dim2=-1).copy_(torch.where(here | (diagonal != 0), diagonal, -0.0))
        return local.flatten(-2).index_select(-1, self._triangle(local.shape[-1], local.device))

    def _unpacked(self, sums: Tensor, shape: torch.Size) -> Tensor:
        """The symmetric matrices whose upper triangles these are."""
        K = sums.new_empty(*shape[:-2], shape[-1] ** 2)
        K[..., self._triangle(shape[-1], sums.device)] = sums
        K = K.view(shape)
        row, column = torch.tril_indices(shape[-1], shape[-1], -1, device=sums.device)
        K[..., row, column] = K[..., column, row]
        return K

    def _triangle(self, tasks: int, device: torch.device) -> Tensor:
        """Places of the upper triangle in a matrix [T, T] row by row. [T(T+1)/2]"""
        key = (tasks, device)
        if key not in self._upper:
            row, column = torch.triu_indices(tasks, tasks)
            self._upper[key] = (row * tasks + column).to(device)
        return self._upper[key]


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
    """
    check_choice("sync", sync, ("global", "local"))
    if group is None:
        if sync != "global":
            raise ValueError(f"sync: expected 'global' without a process group, found {sync!r}; pass process_group=.")
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
    told = {"tasks": names.known, "method": method.spec.name, "options of the method": method, "sync": sync}
    ranks.agree({**told, **options}, "GradientAggregator")
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


def _members(group: Any) -> list[int]:
    if isinstance(group, DeviceMesh):
        return [int(rank) for rank in group.mesh.flatten().tolist()]
    if isinstance(group, dist.ProcessGroup):
        return dist.get_process_group_ranks(group)
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: expected a group that this process is a member of, found that it is none.")
    raise TypeError(
        f"process_group: expected a torch.distributed process group or a DeviceMesh, found {type(group).__name__}. For all "
        "processes pass torch.distributed.group.WORLD, after init_process_group()."
    )


def _backend_and_timeout(group: Any) -> tuple[str, timedelta | None]:
    """Of the communicator that a new one is to be like."""
    of = group.get_group(0) if isinstance(group, DeviceMesh) else group
    backends = of._device_types and {str(d): of._get_backend(d) for d in of._device_types}
    timeouts = [backend.options._timeout for backend in (backends or {}).values() if hasattr(backend, "options")]
    return dist.get_backend_config(of), min(timeouts) if timeouts else None
