"""MGDA, UPGrad, DualProj, CAGrad and PCD: certified however the gradients lie, and what the reference says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from methods.families import FAMILIES, grams
from oracles import cagrad, dual_cone, mgda, pcd
from torch import Tensor

from gradsurgery import ops
from gradsurgery.ops import solvers

COUNTS = {2: 60, 3: 60, 4: 60, 5: 40, 8: 40, 13: 20, 32: 5}  # how many K of how many tasks
INDEPENDENT = {"benign", "rows scaled", "opposed 0.1", "opposed 0.001", "opposed 1e-05", "together 0.001"}  # 0 is no combination
ALLOWED = 1e-9  # of the size of what a residual is computed from

Solved = tuple[Tensor, Tensor]  # residual [B], report [B, 4]


def solve(K: Tensor, solver: str, *options: float, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    w, report = ops.solve(K, solver, list(options), given, None, None, None)
    assert bool(w.isfinite().all())
    return w, report


def certify_mgda(K: Tensor) -> Solved:
    w, report = solve(K, "mgda", 0.0, 0.0)
    return torch.where(report[:, 1] > 0, mgda.vanishing(K, w), mgda.certificate(K, w)), report


def certify_mgda_of_unit_rows(K: Tensor) -> Solved:
    """Zero gradients have no unit row: they are left out, and so is the certificate."""
    w, report = solve(K, "mgda", 1.0, 1.0)
    complete = (K.diagonal(dim1=-2, dim2=-1) > 0).all(-1)
    gap = torch.where(complete, mgda.certificate(K, w, "l2"), 0.0)
    return torch.where(report[:, 1] > 0, mgda.vanishing(K, w), gap), report


def certify_dualproj(K: Tensor) -> Solved:
    T = K.shape[-1]
    w, report = solve(K, "dualproj", 1 / T, 0.0, 0.0)
    return dual_cone.certificate(K, w, torch.full((T,), 1 / T, dtype=K.dtype)), report


def certify_upgrad(K: Tensor) -> Solved:
    """Each projection by itself, and that the answer is their mean."""
    T = K.shape[-1]
    w, report = solve(K, "upgrad", 1 / T, 0.0, 0.0)
    residual, total = torch.zeros(len(K), dtype=K.dtype), torch.zeros_like(w)
    for i in range(T):
        unit = torch.eye(T, dtype=K.dtype)[i]
        part, said = solve(K, "upgrad", 0.0, 0.0, 0.0, given=unit)
        sizes = (K.abs() @ part[..., None])[..., 0] + K.diagonal(dim1=-2, dim2=-1).sqrt() * (
            part * K.diagonal(dim1=-2, dim2=-1).sqrt()
        ).sum(-1, keepdim=True)
        conflict = (-(K @ part[..., None])[..., 0] / sizes.clamp_min(1e-300)).amax(-1)
        moved = ((part - unit) * (K @ part[..., None])[..., 0].abs()).sum(-1) / (part * sizes).sum(-1).clamp_min(1e-300)
        residual = torch.stack([residual, conflict, moved, (unit - part).amax(-1)]).amax(0)
        total += part / T
        report = torch.minimum(report, said) if i == 0 else torch.cat([torch.minimum(report, said)[:, :1], report[:, 1:]], 1)
    torch.testing.assert_close(w, total, rtol=1e-9, atol=0)
    return residual, report


def certify_cagrad(c: float, rescale: int) -> Callable[[Tensor], Solved]:
    def certify(K: Tensor) -> Solved:
        T = K.shape[-1]
        factor = (1.0, 1 / (1 + c * c), 1 / (1 + c))[rescale]
        w, report = solve(K, "cagrad", c, factor)
        stationary = report[:, 1] > 0
        mean = torch.full_like(w, factor / T)
        apart = torch.where(stationary, (w - mean).abs().amax(-1), cagrad.certificate(K, w, c, rescale))
        return apart, report

    return certify


def certify_pcd(K: Tensor) -> Solved:
    w, report = solve(K, "pcd", 0.02, 0.999, 0.0, 0.0)
    usable = (report[:, 1] == 0) & (w[:, 0] > 0)
    return torch.where(usable, pcd.certificate(K, w, eps=0.0), 0.0), report


CERTIFICATES: dict[str, Callable[[Tensor], Solved]] = {
    "mgda": certify_mgda,
    "mgda of unit rows": certify_mgda_of_unit_rows,
    "dualproj": certify_dualproj,
    "upgrad": certify_upgrad,
    "cagrad 0.1": certify_cagrad(0.1, 0),
    "cagrad 0.5": certify_cagrad(0.5, 1),
    "cagrad 1": certify_cagrad(1.0, 2),
    "cagrad 2": certify_cagrad(2.0, 0),
    "pcd": certify_pcd,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CERTIFICATES)
def test_every_answer_is_certified(name: str, family: str) -> None:
    for tasks, count in COUNTS.items():
        K = grams(family, tasks, count)
        residual, report = CERTIFICATES[name](K)
        assert bool((report[:, 0] == 1).all()), f"{int((report[:, 0] != 1).sum())} of T={tasks} did not converge"
        assert float(residual.max()) <= ALLOWED, f"T={tasks}: {float(residual.max()):.2e}"
        if family in INDEPENDENT:
            assert not report[:, 1].any(), "stationary is said where it is true"


CALLS: dict[str, tuple[str, list[float]]] = {
    "mgda": ("mgda", [0.0, 0.0]),
    "mgda of unit rows": ("mgda", [1.0, 1.0]),
    "dualproj": ("dualproj", [0.25, 0.0, 0.0]),
    "upgrad": ("upgrad", [0.25, 0.0, 0.0]),
    "upgrad with a ridge": ("upgrad", [0.25, 1e-4, 1e-4]),
    "cagrad": ("cagrad", [0.5, 1.0]),
    "cagrad far out": ("cagrad", [1.7, 1.0]),
    "pcd": ("pcd", [0.02, 0.999, 0.0, 0.0]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CALLS)
def test_the_reference_agrees(name: str, family: str) -> None:
    """By the combined gradient, against the sizes of its terms: weights need not be unique."""
    solver, options = CALLS[name]
    for tasks in (2, 3, 5):
        K = grams(family, tasks, 6, seed=1)
        w, report = solve(K, solver, *options)
        other, other_report = solvers.solve(K, solver, options)
        assert torch.equal(report[:, :2], other_report[:, :2])
        difference = w - other
        apart = (difference[:, None] @ K @ difference[..., None]).abs().sqrt()[:, 0, 0]
        sizes = (other.abs() * K.diagonal(dim1=-2, dim2=-1).sqrt()).sum(1)
        assert bool((apart <= 1e-7 * sizes).all()), f"T={tasks}: {float((apart / sizes).nan_to_num().max()):.2e}"
