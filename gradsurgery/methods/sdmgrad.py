"""SDMGrad: weights by projected gradient descent with momentum on a cross-Gram matrix, pulled towards the mean."""

from __future__ import annotations

from dataclasses import dataclass

from gradsurgery.options import check_integer, check_number

from .cross import CrossMethod
from .registry import Step, register


@register(
    "sdmgrad",
    family="cross",
    paper="Xiao et al., Direction-oriented Multi-objective Learning, NeurIPS 2023 (arXiv:2305.18409)",
    properties=("permutation_equivariant", "weights_nonnegative", "weights_sum_to_one", "one_task_identity"),
    degree=1.0,
    needs=("against",),
)
@dataclass(frozen=True)
class SDMGrad(CrossMethod):
    """w ← Π_Δ(w − η v), v ← μ v + A (w + λ/T)/s², n times from the w before; out weights (w + λ/T) / (1 + λ).

    s = mean √max(A_tt, 0), without the 1e-8 that implementations add to s², so that the gradients' size does not matter. If no A_tt
    is positive the batches agree on no task: w stays, and the status says not converged. v starts at zero in each step; w starts at
    1/T and is memory. With η = 10, the paper's, the iteration need not settle: small changes of A may send it elsewhere.

    Options:
        lr: η.
        momentum: μ.
        n_iter: n.
        lam: λ, the pull towards the mean; papers and other libraries call it lambda, which Python keeps for itself.
    """

    solver = "sdmgrad"
    state_name = "sdmgrad_weights"
    lr: float = 10.0
    momentum: float = 0.5
    n_iter: int = 20
    lam: float = 0.3

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, at_least=0, below=1)
        check_number("lam", self.lam, at_least=0)
        check_integer("n_iter", self.n_iter, at_least=1, at_most=10_000)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.lr), float(self.momentum), float(self.n_iter), float(self.lam)]
