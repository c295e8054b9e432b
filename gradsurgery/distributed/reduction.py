"""Gradients of T tasks at replicated parameters: summed over the ranks shard by shard, and their combination brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .buckets import Bucket, buckets_of
from .collectives import all_gather, all_reduce, reduce_scatter
from .ranks import Ranks


class Reduction:
    """The mean over R ranks of T tasks' gradients, of which each rank receives 1/R, and the way back of one gradient.

    A reduce-scatter of every task's gradient, in buckets, which runs while the next task's backward pass does; K from the shards,
    whose products add up; and an all-gather of their combination: (T + 1) N b (R - 1)/R bytes a rank, where averaging T gradients
    takes 2 T N b (R - 1)/R. The messages are the same on every rank and in the same order, whichever tasks it has.

    A bucket is packed where it was packed for the task before, whose message has had a whole backward pass to be sent; so there
    is one full gradient in flat tensors, beside T shards of 1/R.

    Args:
        ranks: among which the batch is divided.
        leaves: the parameters to operate on, the same on every rank.
        tasks: T.

    Attributes:
        reached: the ids of the leaves at which some task has a gradient on this rank.
        here: which tasks have one on this rank. [T]
    """

    def __init__(self, ranks: Ranks, leaves: Sequence[Tensor], tasks: int) -> None:
        self.reached: set[int] = set()
        self.here = [False] * tasks
        self._ranks, self._leaves, self._tasks = ranks, leaves, tasks
        self._buckets = buckets_of(leaves, multiple=ranks.size)
        self._flat = [bucket.empty() for bucket in self._buckets]
        self._sent: list[dist.Work | None] = [None for _ in self._buckets]
        self._shards: list[list[Tensor]] = []  # [T] of [B]

    def put(self, task: int, gradients: Mapping[int, Tensor]) -> None:
        """Sends a task's gradients, by the leaves' ids; those between it and the one before have none.

        Args:
            task: its number, above that of the one before.
            gradients: which may be let go of after this.
        """
        while len(self._shards) < task:
            self._send({})
        self.here[task] = bool(gradients)
        self.reached.update(gradients)
        self._send(gradients)

    def _send(self, gradients: Mapping[int, Tensor]) -> None:
        t, shards = len(self._shards), []
        for b, (bucket, flat) in enumerate(zip(self._buckets, self._flat, strict=True)):
            shard = flat.new_empty(bucket.size // self._ranks.size)
            with self._ranks.named("reduce_scatter", f"of bucket {b} of task {t}'s gradient"):
                self._wait(b)
                bucket.pack(flat, gradients, self._ranks.size)
                self._sent[b] = reduce_scatter(shard, flat, self._ranks.group)
            shards.append(shard)
        self._shards.append(shards)

    def _wait(self, b: int) -> None:
        sent, self._sent[b] = self._sent[b], None
        if sent is not None:
            sent.wait()

    def end(self) -> None:
        """Sends what the last tasks lack; before any other message."""
        while len(self._shards) < self._tasks:
            self._send({})

    def entries(self) -> list[Tensor | None]:
        """This rank's part of every leaf's mean gradient, flat and often empty, task by task, after ``end``. [T*P]"""
        for b in range(len(self._buckets)):
            with self._ranks.named("reduce_scatter", f"of bucket {b} of the last task's gradient"):
                self._wait(b)
        return [view for shards in self._shards for view in self._views(shards)]

    def _views(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The parts of the leaves in this rank's shards of all buckets. [P]"""
        found: dict[int, Tensor] = {}
        for bucket, shard in zip(self._buckets, shards, strict=True):
            first = self._ranks.rank * len(shard)
            for slot in bucket.slots:
                start, stop = (min(max(place - first, 0), len(shard)) for place in (slot.start, slot.stop))
                found[id(slot.leaf)] = shard[start:stop]
        return [found[id(leaf)] for leaf in self._leaves]

    def targets(self) -> list[Tensor]:
        """Where to write the combination: over the last task's shards. [P]"""
        return self._views(self._shards[-1])

    def gathered(self) -> list[Tensor]:
        """The combination that stands in ``targets``, whole: views of memory that nobody else uses. [P]"""
        sent = []
        for b, (flat, shard) in enumerate(zip(self._flat, self._shards[-1], strict=True)):
            with self._ranks.named("all_gather", f"of bucket {b} of the combined gradient"):
                sent.append(all_gather(flat, shard, self._ranks.group))
        self._shards = []
        for b, work in enumerate(sent):
            with self._ranks.named("all_gather", f"of bucket {b} of the combined gradient"):
                work.wait()
        whole = {id(slot.leaf): slot.of(flat) for bucket, flat in _with(self._buckets, self._flat) for slot in bucket.slots}
        return [whole[id(leaf)] for leaf in self._leaves]


class Average:
    """The mean over R ranks of one gradient a leaf, and which leaves any rank reaches; under way once it is made.

    Args:
        ranks: among which the batch is divided.
        leaves: whose gradients are averaged, the same on every rank.
        gradients: by the leaves' ids; none, where this rank does not reach a leaf.
        reached: for each of some leaves, of these or others, whether this rank reaches it. [L], the same L on every rank, not 0
        device: where there is nothing but ``reached`` to send.
    """

    def __init__(
        self, ranks: Ranks, leaves: Sequence[Tensor], gradients: Mapping[int, Tensor], reached: Sequence[bool], device: torch.device
    ) -> None:
        self._ranks, self._leaves, self._reached = ranks, leaves, reached
        self._buckets = buckets_of(leaves, more=len(reached)) or [Bucket(torch.float32, device, size=len(reached))]
        self._flat = [bucket.empty() for bucket in self._buckets]
        self._sent: list[dist.Work] = []
        marks = self._flat[-1][-len(reached) :]
        if all(reached):
            marks.fill_(1.0)
        else:  # from the host's memory, for which it waits, as ``anywhere`` does
            marks.copy_(torch.tensor([float(here) for here in reached]))
        for b, (bucket, flat) in enumerate(_with(self._buckets, self._flat)):
            bucket.pack(flat, gradients, ranks.size)
            with ranks.named("all_reduce", f"of bucket {b} of averaged gradients"):
                self._sent.append(all_reduce(flat, ranks.group))

    def _wait(self) -> None:
        for b, work in enumerate(self._sent):
            with self._ranks.named("all_reduce", f"of bucket {b} of averaged gradients"):
                work.wait()
        self._sent = []

    def anywhere(self) -> list[bool]:
        """Which of the leaves some rank reaches; waits for the device where this rank does not reach all. [L]"""
        if all(self._reached):
            return [True] * len(self._reached)
        self._wait()
        return [count > 0 for count in self._flat[-1][-len(self._reached) :].tolist()]

    def result(self) -> list[Tensor]:
        """The averages: views of memory that nobody else uses."""
        self._wait()
        whole = {id(slot.leaf): slot.of(flat) for bucket, flat in _with(self._buckets, self._flat) for slot in bucket.slots}
        return [whole[id(leaf)] for leaf in self._leaves]


def _with(buckets: Sequence[Bucket], flat: Sequence[Tensor]) -> zip[tuple[Bucket, Tensor]]:
    return zip(buckets, flat, strict=True)
