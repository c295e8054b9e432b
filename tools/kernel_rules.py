"""What is asked of the compiled kernels, by their names; ``kernels.py`` checks it, and a new kernel has to be entered here.

All kernels: no atomic operation on floating-point numbers (sums would depend on who comes first), no TF32, and no more static
shared memory than a launch gets without asking. Hot kernels read the gradients, and their speed is the memory's. Of them, besides:
nothing in local memory; in every sweep, for each type of gradients, a loop that reads 16 bytes at a time from each of its rows; and
registers for two blocks of 256 threads a multiprocessor, where Run is float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = (80, 90, 100)
STATIC_SHARED_BYTES = 48 * 1024
REGISTERS = 65536 // (2 * 256)  # a thread's, where two blocks share the registers of a multiprocessor


@dataclass(frozen=True)
class Hot:
    """What a kernel is for, and how it reads.

    Attributes:
        purpose: for the document.
        sweeps: how many times it goes over the gradients, in loops of their own.
        at_once: rows that a loop reads together, where these are fewer than the kernel's first number, or it has none.
        types: of gradients that it takes, where these are not all.
    """

    purpose: str
    sweeps: int = 1
    at_once: int | None = None
    types: int | None = None


HOT = {
    "gram_small": Hot("K of up to 8 tasks"),
    "gram_tiled": Hot("K of more tasks"),
    "gram_mma": Hot("K of more than 16 tasks' gradients of 16 bits", at_once=4, types=2),
    "pcgrad_fused": Hot("PCGrad of up to 8 tasks in one launch: K, the weights, their sum", sweeps=2),
    "sample_surgery": Hot("surgery of every sample by itself", at_once=4),
    "combine_chunks": Hot("the weighted sum"),
    "graddrop_chunks": Hot("GradDrop"),
    "sign_agreement_chunks": Hot("sign agreement"),
    "sorted_chunks": Hot("trimmed mean and median of up to 16 tasks"),
    "ema_gram_small": Hot("averages of up to 8 tasks' gradients, and their K"),
    "ema_rows": Hot("averages of more tasks' gradients"),
    "excess_risk": Hot("ExcessMTL's sums of squares and risks"),
}
COLD = {
    "gram_finish": "adds up the blocks' sums of each pair",
    "pcgrad_solve": "PCGrad's weights of K",
    "pcgrad_advance": "advances the counter of random orders",
    "solve_weights": "another method's weights of K, by a warp",
    "find_broken": "whether K is finite",
    "advance_key": "advances the counter of random orders",
    "advance_step": "advances the counter of random draws",
    "sample_advance": "advances the counter of random orders, unless some sample's K is not finite",
    "write_table": "writes a table of many tensors",
    "ranked_chunks": "trimmed mean and median of more tasks: reads each value once a task, from the caches",
    "clear_broken": "clears a flag a task",
    "refuse": "makes K NaN where a gradient is not finite",
    "finish_risk": "adds up the blocks' sums of each task",
}

Rule = Literal["registers", "local memory", "16-byte loads"]


@dataclass(frozen=True)
class Exemption:
    """A hot kernel, by a pattern of its whole name, of which something is not asked. One that none needs is refused."""

    kernel: str
    rule: Rule
    reason: str


EXEMPTIONS = (
    Exemption("sorted_chunks<16,f>", "16-byte loads", "16 rows of 16 bytes would not fit the registers: it reads 8 bytes of each"),
    Exemption("gram_tiled<f>", "registers", "a warp holds 32 sums a lane; one block a multiprocessor, of up to 320 threads"),
    Exemption(
        "gram_mma", "registers", "24 float64 sums a lane and as many float32 ones; three blocks a multiprocessor, of 128 threads"
    ),
    Exemption("sample_surgery<8,1,f>", "registers", "one block a multiprocessor, of up to 320 threads"),
)
