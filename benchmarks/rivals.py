"""TorchJD's solvers (https://github.com/TorchJD/torchjd), version 0.18, by the name that their method has here.

A new one is a line in ``RIVALS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Orders = Callable[[int], list[list[int]]]


def _permutations(tasks: int) -> list[list[int]]:
    return [torch.randperm(tasks).tolist() for _ in range(tasks)]


def _permutations_of_others(tasks: int) -> list[list[int]]:
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    return [[own[k] for k in torch.randperm(tasks - 1).tolist()] for own in others]


@dataclass(frozen=True)
class Rival:
    """Another library's solver of the same problem.

    Attributes:
        build: T -> what is called with K [T, T] for weights [T], or with G [T, N] for a gradient [N].
        takes: which of the two; a library that offers no weights is given G of few coordinates.
        options: of the method here, that make the problems the same.
        orders: T -> the orders that the next call will draw, for methods with random orders; see ``providers.Provider``.
    """

    build: Callable[[int], Callable[[Tensor], Tensor]]
    takes: Literal["gram", "gradients"] = "gram"
    options: Mapping[str, Any] = field(default_factory=dict)
    orders: Orders | None = None


def _weighting(name: str, **options: Any) -> Callable[[int], Callable[[Tensor], Tensor]]:
    def build(tasks: int) -> Callable[[Tensor], Tensor]:
        import torchjd.aggregation as theirs

        solver: Callable[[Tensor], Tensor] = getattr(theirs, name)(**options)
        return solver

    return build


def _gradvac(tasks: int) -> Callable[[Tensor], Tensor]:
    """Without memory of earlier calls, like ``gradsurgery.weights``."""
    from torchjd.aggregation import GradVacWeighting

    weighting = GradVacWeighting()

    def solve(gram: Tensor) -> Tensor:
        weighting.reset()
        result: Tensor = weighting(gram)
        return result

    return solve


def _nashmtl(tasks: int) -> Callable[[Tensor], Tensor]:
    """With its memory: the problem is stated once, and each call starts from the last one's answer."""
    return _weighting("NashMTL", n_tasks=tasks)(tasks)


RIVALS: Mapping[str, Rival] = {
    "pcgrad": Rival(_weighting("PCGradWeighting"), orders=_permutations),
    "gradvac": Rival(_gradvac, orders=_permutations_of_others),
    "mgda": Rival(_weighting("MGDAWeighting")),
    "cagrad": Rival(_weighting("CAGradWeighting", c=0.5), options={"c": 0.5}),
    "fairgrad": Rival(_weighting("FairGradWeighting", alpha=1.0), options={"alpha": 1.0}),
    "nashmtl": Rival(_nashmtl, takes="gradients"),
    "upgrad": Rival(_weighting("UPGradWeighting")),
    "dualproj": Rival(_weighting("DualProjWeighting")),
    "imtlg": Rival(_weighting("IMTLGWeighting")),
    "alignedmtl": Rival(_weighting("AlignedMTLWeighting")),
    "config": Rival(_weighting("ConFIG"), takes="gradients"),
}
