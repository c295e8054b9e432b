"""Eigenvalues, ranks and pseudo-inverses; see ``csrc/weights/jacobi.h`` and ``cosines.h``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Reduced, Report

RANK_TOLERANCE = 1e-14


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues, descending, those above rounding first, and unit eigenvectors as columns.

    Attributes:
        values: [n]
        vectors: [n, n]
        rank: how many values are above rounding and above ``error``.
        error: several times the most negative value, which shows the matrix's errors; 0 where it is rounding.
    """

    values: Tensor
    vectors: Tensor
    rank: int
    error: float

    @classmethod
    def of(cls, matrix: Tensor, absolute: float, relative: float) -> Spectrum:
        """Of a symmetric matrix [n, n]; values up to ``absolute`` + ``relative`` times the largest count as zero."""
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        if len(values) == 0:
            return cls(values, vectors, 0, 0.0)
        rounding = absolute + relative * float(values[0])
        error = -16 * float(values[-1]) if values[-1] < -rounding else 0.0
        return cls(values, vectors, int((values > max(rounding, error)).sum()), error)

    def kept(self) -> tuple[Tensor, Tensor]:
        """The values above rounding and their vectors. [rank], [n, rank]"""
        return self.values[: self.rank], self.vectors[:, : self.rank]


def components(spectrum: Spectrum, b: Tensor) -> Tensor:
    """<v_k, b>, and 0 where that is a difference of equal numbers to rounding or to the matrix's errors. [rank]"""
    values, vectors = spectrum.kept()
    products = vectors * b[:, None]
    sums, sizes = products.sum(0), products.abs().sum(0)
    return torch.where(sums.abs() <= (len(b) * 2.0**-50 + spectrum.error / values) * sizes, 0.0, sums)


def cancels(gram: Tensor, x: Tensor) -> bool:
    """Whether the positive part of +-x combines gradients to zero, to rounding, beside their lengths."""
    x = (x if x.sum() >= 0 else -x).clamp_min(0)
    size = x**2 @ gram.diagonal()
    return bool(size > 0) and bool(x @ gram @ x <= len(x) * RANK_TOLERANCE * size)


def stationarity(gram: Tensor, rank: int, x: Tensor) -> bool | None:
    """Whether a convex combination of gradients of this rank vanishes, x being one that does; None where there are several."""
    if rank == len(gram):
        return False
    return cancels(gram, x) if rank == len(gram) - 1 else None


@dataclass(frozen=True)
class Cosines:
    """C = D^-1 K D^-1 without zero gradients, with D the gradients' lengths.

    Attributes:
        reduced: K without them.
        norm: the lengths, over the powers of two in ``reduced.scale``. [n]
        spectrum: of C.
    """

    reduced: Reduced
    norm: Tensor
    spectrum: Spectrum

    @classmethod
    def of(cls, gram: Tensor) -> Cosines:
        """From K [T, T]."""
        reduced = Reduced.of(gram)
        norm = reduced.gram.diagonal().sqrt()
        C = (reduced.gram / torch.outer(norm, norm)).fill_diagonal_(1.0)
        return cls(reduced, norm, Spectrum.of(C, 1e-14, 1e-15))

    def report(self) -> Report:
        """Rank, and stationarity where at most one combination of the gradients vanishes."""
        rank = self.spectrum.rank
        if not len(self.norm):
            return Report(rank=rank)
        return Report(rank=rank, stationary=stationarity(self.reduced.gram, rank, self.spectrum.vectors[:, -1] / self.norm))
