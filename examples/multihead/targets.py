"""What a task's head has to say: how labels become targets, how its output is scored, and how it becomes an answer again.

Everything here is fitted on the training set, travels with the model's weights (`state`), and is all that prediction needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from harness.errors import DataError
from harness.precision import at_least_float32
from torch import Tensor

from gradsurgery.balancers.uncertainty import Kind
from multihead.data.labels import CLASSES, Label, Labels


@dataclass(frozen=True)
class Vocabulary:
    """A class of `names`. Loss: mean of −log softmax(output)[class]."""

    kind: ClassVar[Kind] = "classification"
    loss_unit: ClassVar[str] = "cross-entropy, nats"
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.names)

    def encode(self, label: Label) -> float | None:
        """The class's index; None where it was never seen in training."""
        return self._index.get(cast(str, label))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """output [N, classes], target [N], the indices of the classes."""
        return F.cross_entropy(at_least_float32(output), target.long())

    def predict(self, output: Tensor) -> Tensor:
        """[N, classes] -> probabilities [N, classes]"""
        return output.float().softmax(-1)


@dataclass(frozen=True)
class Standardised:
    """A number; the head gives z = (number − mean) / std. Loss: mean squared error of z."""

    kind: ClassVar[Kind] = "regression"
    loss_unit: ClassVar[str] = "squared error / variance"
    outputs: ClassVar[int] = 1
    mean: float
    std: float

    def encode(self, label: Label) -> float | None:
        return cast(float, label)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """output [N, 1], target [N] in the label's unit."""
        return F.mse_loss(at_least_float32(output)[:, 0], (target - self.mean) / self.std)

    def predict(self, output: Tensor) -> Tensor:
        """[N, 1] -> the number in the label's unit. [N]"""
        return output.float()[:, 0] * self.std + self.mean


@dataclass(frozen=True)
class Binned:
    """A number as one of the training set's quantile bins. Loss: cross-entropy of its bin; answer: Σ p(bin) · mean(bin).

    The probability-weighted mean uses that neighbouring bins are alike, and does not jump where two bins are equally likely, as the
    most probable bin's mean would.
    """

    kind: ClassVar[Kind] = "classification"
    loss_unit: ClassVar[str] = "cross-entropy, nats"
    edges: tuple[float, ...]  # between the bins, [bins − 1]
    means: tuple[float, ...]  # of the training set's numbers in each, [bins]

    @property
    def outputs(self) -> int:
        return len(self.means)

    def encode(self, label: Label) -> float | None:
        return cast(float, label)

    def bin_of(self, target: Tensor) -> Tensor:
        """Numbers [N] -> indices [N]; those below and above all that was seen fall into the outer bins."""
        return torch.bucketize(target, torch.tensor(self.edges, dtype=target.dtype, device=target.device))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """output [N, bins], target [N] in the label's unit."""
        return F.cross_entropy(at_least_float32(output), self.bin_of(target))

    def predict(self, output: Tensor) -> Tensor:
        """[N, bins] -> the number in the label's unit. [N]"""
        # No matrix product: autocast would take it, and the means, to half precision.
        return (output.float().softmax(-1) * torch.tensor(self.means, device=output.device)).sum(-1)


Target = Vocabulary | Standardised | Binned
Targets = Mapping[str, Target]
_TYPES: dict[str, Callable[..., Target]] = {
    "vocabulary": Vocabulary, "standardised": Standardised, "binned": Binned,
}  # fmt: skip


def fit_targets(labels: Sequence[Labels], tasks: Sequence[str], *, numbers: str, bins: int, where: str) -> dict[str, Target]:
    """One target a task from the training set's labels.

    Args:
        labels: of the training set.
        tasks: which of them to fit.
        numbers: "regression", or "binned" into at most `bins` quantiles.
        bins: see `numbers`; fewer where fewer distinct numbers exist.
        where: the labels come from, for errors.

    Raises:
        DataError: a task without labels, or with only one value: there is nothing to learn.
    """
    targets: dict[str, Target] = {}
    for task in tasks:
        known = [label for label in (record[task] for record in labels) if label is not None]
        if len(set(known)) < 2:
            found = f"all {len(known)} of them {known[0]!r}" if known else f"none in {len(labels)} records"
            others = " ".join(other for other in tasks if other != task)
            raise DataError(
                f"{where}: expected labels of {task!r} of at least two kinds, found {found}; there is nothing to learn: "
                f"correct the labels, or leave the task out by --tasks {others or '…'}"
            )
        if task in CLASSES:
            targets[task] = Vocabulary(tuple(sorted({str(label) for label in known})))
        else:
            values = np.array(known, np.float64)
            targets[task] = (
                Standardised(float(values.mean()), float(values.std())) if numbers == "regression" else _bins(values, bins)
            )
    return targets


def _bins(values: np.ndarray[Any, np.dtype[np.float64]], bins: int) -> Binned:
    """Cuts lie halfway between two distinct values, so that none is on an edge, where the share below is nearest to k / bins."""
    distinct, counts = np.unique(values, return_counts=True)
    below = counts.cumsum()[:-1] / len(values)  # of a cut after each distinct value but the last
    cuts = np.unique([int(np.abs(below - k / bins).argmin()) for k in range(1, bins)])
    edges = (distinct[cuts] + distinct[cuts + 1]) / 2
    of = np.searchsorted(edges, values)
    return Binned(tuple(edges.tolist()), tuple(float(values[of == index].mean()) for index in range(len(edges) + 1)))


def unseen(labels: Sequence[Labels], targets: Targets) -> dict[str, Counter[str]]:
    """Task -> how often each class that is not in its vocabulary occurs; tasks without any are left out."""
    found = {
        task: Counter(str(record[task]) for record in labels if record[task] is not None and target.encode(record[task]) is None)
        for task, target in targets.items()
    }
    return {task: counts for task, counts in found.items() if counts}


def targets_state(targets: Targets) -> dict[str, dict[str, Any]]:
    """Targets as plain Python values, that load without running code."""
    names = {kind: name for name, kind in _TYPES.items()}
    return {task: {"type": names[type(target)], **asdict(target)} for task, target in targets.items()}


def targets_from_state(state: Mapping[str, Mapping[str, Any]]) -> dict[str, Target]:
    """What `targets_state` wrote."""
    return {
        task: _TYPES[fields["type"]](**{name: tuple(value) if isinstance(value, list) else value
                                        for name, value in fields.items() if name != "type"})
        for task, fields in state.items()
    }  # fmt: skip
