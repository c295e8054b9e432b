"""What a step's messages cost, as a function of tasks, parameters, ranks and link."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from gradsurgery.options import check_choice, check_integer

Mode = Literal["data parallel", "representation", "local", "parameters", "parameters, fully sharded", "every task reduced"]
"""What a step exchanges; see ``traffic``."""

Algorithm = Literal["ring", "tree"]
"""How a message travels: by W − 1 neighbours, or through trees, as libraries choose it for short messages and many ranks."""

BUCKET_BYTES = 25 << 20
"""How large the messages are that gradients travel in, as DistributedDataParallel has it."""

SHORT = 256 << 10
"""Below so many bytes a message is all latency, and goes through a tree."""

DOUBLE = 8


@dataclass(frozen=True)
class Link:
    """One rank's way to the others.

    Attributes:
        bytes_per_s: in one direction.
        latency_s: from one rank to the next.
    """

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Traffic:
    """What one rank sends in a step; it receives as much.

    Attributes:
        bytes: sent.
        messages: collectives that are started.
        rounds: how often a rank has to wait for another's part, one after the other.
    """

    bytes: float = 0.0
    messages: int = 0
    rounds: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.messages + other.messages, self.rounds + other.rounds)

    def __mul__(self, count: int) -> Traffic:
        return Traffic(self.bytes * count, self.messages * count, self.rounds * count)

    def seconds(self, link: Link) -> float:
        """rounds · latency + bytes / bandwidth, where nothing runs beside it."""
        return self.rounds * link.latency_s + self.bytes / link.bytes_per_s


def reduce_scatter(nbytes: float, world: int, messages: int = 1, algorithm: Algorithm = "ring") -> Traffic:
    """(W − 1)/W of the bytes, in W − 1 rounds a message by a ring, or ⌈log₂ W⌉ by trees; an all-gather is the same backwards."""
    rounds = world - 1 if algorithm == "ring" else math.ceil(math.log2(world))
    return Traffic(nbytes * (world - 1) / world, messages, rounds * messages) if world > 1 else Traffic()


def all_reduce(nbytes: float, world: int, messages: int = 1, algorithm: Algorithm = "ring") -> Traffic:
    """A reduce-scatter and an all-gather in one message. Short of bytes to send, rings are left for trees."""
    chosen: Algorithm = "tree" if nbytes / messages < SHORT else algorithm
    half = reduce_scatter(nbytes, world, messages, chosen)
    return Traffic(2 * half.bytes, half.messages, 2 * half.rounds)


def traffic(
    mode: Mode,
    tasks: int,
    world: int,
    shared: int,
    heads: int = 0,
    itemsize: int = 4,
    bucket_bytes: int = BUCKET_BYTES,
    algorithm: Algorithm = "ring",
) -> Traffic:
    """What a rank sends in one step, gradients of all parameters included.

    With T tasks, N shared parameters and M others of b bytes, W ranks, and R(x) = x (W − 1)/W:

    ============================== ===================================================== =========================================
    mode                           bytes a rank sends                                    surgery
    ============================== ===================================================== =========================================
    "data parallel"                2 R((N + M) b)                                        none: the sum of the losses
    "representation"               that + 2 R(8 T(T + 1)/2)                              ``split``, ``detach``
    "parameters"                   (T + 1) R(N b) + 2 R(M b) + 2 R(8 T(T + 1)/2)         ``backward(losses)``
    "parameters, fully sharded"    (2 T + 1) R(N b) + (T + 1) R(M b) + 2 R(8 T(T+1)/2)   the same, under FSDP2
    "local"                        2 R((N + M) b)                                        ``sync="local"``: another algorithm
    "every task reduced"           2 T R(N b) + 2 R(M b)                                 what averaging T gradients first would take
    ============================== ===================================================== =========================================

    Under FSDP2 the parameters travel, too: the trunk's, wrapped by itself, once in the forward pass and once in each of T backward
    passes, with one reduce-scatter a task; those of the outermost wrapper, here the heads, stay after the forward pass. Plain FSDP2
    sends 3 R(N b) + 2 R(M b).

    Args:
        mode: which of them.
        tasks: T.
        world: W.
        shared: N.
        heads: M.
        itemsize: b.
        bucket_bytes: how large a message of gradients is at most.
        algorithm: how long messages travel; decides the rounds alone.

    Raises:
        ValueError, TypeError: no such mode, or a number that is none.
    """
    check_choice("mode", mode, get_args(Mode))
    check_choice("algorithm", algorithm, get_args(Algorithm))
    for name, value, least in (("tasks", tasks, 1), ("world", world, 1), ("shared", shared, 0), ("heads", heads, 0)):
        check_integer(name, value, at_least=least)

    def message(collective: Callable[..., Traffic], numel: int) -> Traffic:
        nbytes = numel * itemsize
        return collective(nbytes, world, math.ceil(nbytes / bucket_bytes), algorithm) if nbytes else Traffic()

    half = message(reduce_scatter, shared)  # or an all-gather
    others = message(all_reduce, heads)
    gram = all_reduce(DOUBLE * tasks * (tasks + 1) / 2, world)
    plain = message(all_reduce, shared + heads)
    if mode == "representation":
        return plain + gram
    if mode == "parameters":
        return half * (tasks + 1) + gram + others
    if mode == "every task reduced":
        return message(all_reduce, shared) * tasks + others
    if mode == "parameters, fully sharded":
        return half * (2 * tasks + 1) + message(reduce_scatter, heads) * (tasks + 1) + gram
    return plain
