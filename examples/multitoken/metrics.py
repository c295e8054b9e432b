"""Bits a byte and accuracy of every head, and the floor: the frequencies of the training text's bytes, whatever comes before."""

from collections.abc import Iterable, Mapping

import torch
from harness.metric import Metric
from harness.processes import average
from torch import Tensor

from multitoken.data.windows import IGNORE
from multitoken.objective import NATS_PER_BIT, FutureTokens, cross_entropy


def metrics_of(tasks: Iterable[str]) -> tuple[Metric, ...]:
    """Every metric of the tasks; bits a byte stand for a task."""
    return tuple(
        metric
        for task in tasks
        for metric in (
            Metric(f"{task}/bits_per_byte", best=0.0, unit=" bits", primary=True),
            Metric(f"{task}/accuracy", best=1.0),
        )
    )


class Tally:
    """Bits, hits and bytes of one task, over the targets that the text holds."""

    def __init__(self, task: str) -> None:
        self.task, self.bits, self.hits, self.bytes = task, 0.0, 0, 0

    def update(self, logits: Tensor, target: Tensor) -> None:
        """logits [B, C, V], target [B, C] with IGNORE."""
        self.bits += float(cross_entropy(logits, target, "sum")) / NATS_PER_BIT
        self.hits += int((logits.argmax(-1) == target).sum())  # no class is IGNORE
        self.bytes += int((target != IGNORE).sum())

    def compute(self) -> dict[str, float]:
        """{"task/metric": value}, empty before any target was seen."""
        bits, hits, count = average(torch.tensor([self.bits, self.hits, self.bytes], dtype=torch.float64)).tolist()
        return {f"{self.task}/bits_per_byte": bits / count, f"{self.task}/accuracy": hits / count} if count else {}


class Unigram:
    """log of the bytes' shares in the training text, each counted once more than it occurs, so that none is impossible. [V]"""

    def __init__(self, text: Tensor, vocabulary: int) -> None:
        counts = torch.bincount(text, minlength=vocabulary).double() + 1
        self.log_shares = (counts / counts.sum()).log()

    @property
    def most_frequent(self) -> int:
        return int(self.log_shares.argmax())

    def measure(self, problem: FutureTokens, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
        """Its metrics over the batches, under the names that a model's have."""
        tallies = {task: Tally(task) for task in problem.tasks}
        for batch in batches:
            for task, tally in tallies.items():
                target = problem.target(task, batch)
                tally.update(self.log_shares.expand(*target.shape, -1), target)
        return {name: value for tally in tallies.values() for name, value in tally.compute().items()}
