"""The operators with buffers on one sample: compiled for the CPU or for CUDA, and reference, against float64 on full matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ops.samples import Sample, maker, weights_of
from torch import Tensor

from gradsurgery.ops import reference


@dataclass(frozen=True)
class Rounding:
    """How exact an implementation is: relative errors of one coordinate (beside one rounding to the buffer's type) and of a sum."""

    coordinate: float
    total: float

    @classmethod
    def of(cls, cuda: bool, *dtypes: torch.dtype) -> Rounding:
        """CUDA works in float32, in runs of at most 256 additions, unless one tensor of the call is float64."""
        return cls(4 * 2.0**-23, 3e-6) if cuda and torch.float64 not in dtypes else cls(2.0**-50, 1e-12)


def without_unreached(given: Sample) -> Sample:
    """Only the positions that some task reaches: others have no buffer."""
    if given.stacked:
        return given
    reached = [p for p in range(given.pieces) if any(row is not None for row in given.rows(p))]
    return Sample([given.grads[t * given.pieces + p] for t in range(given.tasks) for p in reached], given.tasks)


def buffers_of(given: Sample, dtype: torch.dtype = torch.float32, seed: int = 7) -> list[Tensor]:
    """Positive numbers, a slice a task, dense in the order of the dimensions. [P]"""
    result = []
    for p in range(given.pieces):
        like = next(row for row in given.rows(p) if row is not None)
        result.append(maker(dtype, like.device, seed + p)(given.tasks, *like.shape).abs())
    return result


def flat(given: Sample, buffers: list[Tensor]) -> Tensor:
    """[T, N] float64"""
    return torch.cat([b.double().reshape(given.tasks, -1) for b in buffers], dim=1)


def present(given: Sample) -> Tensor:
    """Which tasks have a gradient somewhere. [T] bool"""
    P, T = given.pieces, given.tasks
    here = [given.stacked or any(g is not None for g in given.grads[t * P : (t + 1) * P]) for t in range(T)]
    return torch.tensor(here, device=next(g.device for g in given.grads if g is not None))


def check(ops: Any, given: Sample, buffer_dtype: torch.dtype = torch.float32, cuda: bool = False) -> None:
    """``ema_gram_`` and ``excess_risk_`` of ``ops`` and of the reference."""
    given = without_unreached(given)
    check_averages(ops, given, buffers_of(given, buffer_dtype), cuda)
    check_risks(ops, given, buffers_of(given, buffer_dtype), cuda)


def rounding_of(given: Sample, buffers: list[Tensor], cuda: bool) -> Rounding:
    return Rounding.of(cuda, *(g.dtype for g in given.grads if g is not None), *(b.dtype for b in buffers))


def assert_stored(buffers: list[Tensor], given: Sample, exact: Tensor, magnitude: Tensor, coordinate: float) -> None:
    info = torch.finfo(buffers[0].dtype)
    allowed = info.eps * exact.abs() + coordinate * magnitude + info.smallest_normal * info.eps
    assert bool(((flat(given, buffers) - exact).abs() <= allowed).all())


def check_averages(ops: Any, given: Sample, buffers: list[Tensor], cuda: bool) -> None:
    T, G, here = given.tasks, given.matrix(), present(given)[:, None]
    rounding = rounding_of(given, buffers, cuda)
    plain = [buffer.clone() for buffer in buffers]
    scales, rate = weights_of(T, G.device), torch.tensor(0.3, dtype=torch.float64, device=G.device)
    Y = flat(given, buffers)
    exact = torch.where(here, Y + rate * (scales[:, None] * G - Y), Y)
    magnitude = torch.where(here, Y.abs() + (scales[:, None] * G).abs(), 0.0)
    K = ops.ema_gram_(buffers, given.grads, T, given.stacked, scales, rate)
    plain_K = reference.ema_gram_(plain, given.grads, T, given.stacked, scales, rate)
    total = Rounding.of(cuda, buffers[0].dtype).total  # with many tasks K is read from the buffers, as `gram` reads them
    exactly = Rounding.of(False)
    for new, said, allowed, summed in ((buffers, K, rounding, total), (plain, plain_K, exactly, exactly.total)):
        assert_stored(new, given, exact, magnitude, allowed.coordinate)
        assert torch.equal(flat(given, new)[~here[:, 0]], Y[~here[:, 0]])
        counted = flat(given, new) * here
        norms = counted.norm(dim=1)
        assert said.dtype == torch.float64
        assert torch.equal(said, said.T)
        assert bool(((said - counted @ counted.T).abs() <= summed * torch.outer(norms, norms)).all())


def check_risks(ops: Any, given: Sample, buffers: list[Tensor], cuda: bool) -> None:
    G, here = given.matrix(), present(given)[:, None]
    rounding = rounding_of(given, buffers, cuda)
    plain = [buffer.clone() for buffer in buffers]
    R = flat(given, buffers)
    root = (R**2 + G**2).sqrt()
    risk = torch.where(root == 0, 0.0, G**2 / root).sum(1)
    e = ops.excess_risk_(buffers, given.grads, given.tasks, given.stacked)
    plain_e = reference.excess_risk_(plain, given.grads, given.tasks, given.stacked)
    for new, said, allowed in ((buffers, e, rounding), (plain, plain_e, Rounding.of(False))):
        assert_stored(new, given, torch.where(here, root, R), root * here, allowed.coordinate)
        assert said.dtype == torch.float64
        assert bool(((said - risk).abs() <= allowed.total * risk).all())


def check_scaled_risks(ops: Any) -> None:
    """In float64 risks follow the gradients' size over all of its range, where squares have left it long before."""
    make = maker(torch.float64)
    G, R = make(3, 1029), make(3, 1029).abs()
    G[0, 5], R[0, 5], R[1, 7] = 0.0, 0.0, 0.0
    root = (R**2 + G**2).sqrt()
    risk = torch.where(root == 0, 0.0, G**2 / root).sum(1)
    for exponent in (-900, -600, 0, 600, 900):
        size = 2.0**exponent
        for run in (ops, reference):
            buffers = [R * size]
            e = run.excess_risk_(buffers, [G * size], 3, True)
            torch.testing.assert_close(e / size, risk, rtol=1e-12, atol=0)
            torch.testing.assert_close(buffers[0] / size, root, rtol=1e-15, atol=0)
