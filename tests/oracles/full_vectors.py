"""One table of the algorithms on full vectors: a method's name -> G [T, N] -> the combined gradient [N]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import coordinatewise, scalarization, spectral
from .cagrad import cagrad
from .dual_cone import dualproj, upgrad
from .fairgrad import fairgrad, nashmtl
from .gradvac import gradvac
from .krum import krum
from .mgda import mgda
from .pcd import pcd
from .pcgrad import pcgrad
from .random_weights import random

SEED = 5
"""Of the methods that draw at random."""

ORACLES: dict[str, Callable[[Tensor], Tensor]] = {
    "alignedmtl": spectral.alignedmtl,
    "cagrad": cagrad,
    "config": spectral.config,
    "constant": scalarization.total,
    "crmogm": mgda,
    "dualproj": dualproj,
    "imtlg": spectral.imtlg,
    "fairgrad": fairgrad,
    "gradvac": gradvac,
    "nashmtl": nashmtl,
    "krum": krum,
    "mgda": mgda,
    "pcd": pcd,
    "pcgrad": pcgrad,
    "random": lambda G: random(G, SEED),
    "sum": scalarization.total,
    "upgrad": upgrad,
    "mean": scalarization.mean,
    "graddrop": lambda G: coordinatewise.by_coordinate(
        G, lambda x, k: coordinatewise.graddrop(x, coordinatewise.uniform(SEED, 0, k))
    ),
    "sign_agreement": lambda G: coordinatewise.by_coordinate(G, lambda x, _: coordinatewise.sign_agreement(x)),
    "trimmed_mean": lambda G: coordinatewise.by_coordinate(G, lambda x, _: coordinatewise.trimmed_mean(x, 1)),
    "median": lambda G: coordinatewise.by_coordinate(G, lambda x, _: coordinatewise.median(x)),
}
"""With ascending orders, the seed above, and otherwise the default options."""
