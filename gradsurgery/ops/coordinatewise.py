"""``coordinatewise_`` in plain PyTorch: rules that treat every coordinate by itself, and the specification of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import Gradients, philox, rows_by_position
from .schema import LIBRARY

_CHUNK = 1 << 16  # coordinates a task, widened to float64 at a time


def uniform_numbers(key: Tensor, first: int, count: int) -> Tensor:
    """U in (0, 1) with 32 bits for the coordinates first..first+count-1: four from each Philox block. [count] float64"""
    block = torch.arange(first // 4, (first + count + 3) // 4, device=key.device)
    words = philox(key[0], key[1], block & 0xFFFFFFFF, block >> 32).reshape(-1)
    return words[first % 4 :][:count].double().add(0.5) * 2.0**-32


def graddrop(X: Tensor, leak: Tensor | None, U: Tensor) -> Tensor:
    """p = sum of the positive x, q = sum of the others, P = p / (p - q): p where P > U, q where P < U, and leak * x of the rest."""
    zeros = torch.zeros_like(X)
    positive, other = torch.where(X > 0, X, zeros), torch.where(X > 0, zeros, X)
    p, q = _added(positive), _added(other)
    leaked_p, leaked_q = (zeros[0], zeros[0]) if leak is None else (_added(leak[:, None] * x) for x in (positive, other))
    up, down = p * (1.0 - U), -q * U  # P > U without the division
    return torch.where(up > down, p + leaked_q, torch.where(up < down, q + leaked_p, leaked_p + leaked_q))


def sign_agreement(X: Tensor, threshold: float, mean: bool) -> Tensor:
    """(sum or mean of x) where |mean of sign(x)| >= threshold, and 0 elsewhere."""
    votes, total = X.sign().sum(0), _added(X)
    agree = votes.abs() / len(X) >= threshold
    return torch.where(agree, total / len(X) if mean else total, 0.0)


def trimmed_mean(X: Tensor, trim: int) -> Tensor:
    """The mean without the ``trim`` smallest and the ``trim`` largest values."""
    middle = X.sort(dim=0).values[trim : len(X) - trim]
    return _added(middle) / len(middle)


def median(X: Tensor) -> Tensor:
    """The middle value, or the mean of the middle two."""
    return trimmed_mean(X, (len(X) - 1) // 2)


def _added(X: Tensor) -> Tensor:
    """The sum over the tasks in their order, which ``Tensor.sum`` leaves open."""
    total = torch.zeros_like(X[0])
    for x in X:
        total = total + x
    return total


def _combined(rows: Sequence[Tensor | None], apply: Callable[[Tensor, int], Tensor], like: Tensor) -> Tensor:
    """apply(X [n, M], start) over chunks of one position. [numel] float64"""
    flat = [row.reshape(-1) for row in rows if row is not None]
    result = torch.zeros(like.numel(), dtype=torch.float64, device=like.device)
    if flat:
        for start in range(0, like.numel(), _CHUNK):
            X = torch.stack([row[start : start + _CHUNK].double() for row in flat])
            result[start : start + _CHUNK] = apply(X, start) + (X - X).sum(0)
    return result


def coordinatewise_(
    out: Sequence[Tensor],
    grads: Gradients,
    tasks: int,
    stacked: bool,
    rule: str,
    options: Sequence[float],
    uniform: Tensor | None = None,
    key: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """out_p (+)= rule(g_1p, .., g_Tp) at every coordinate; see ``schema.py``."""
    positions = rows_by_position(grads, tasks, stacked)
    _check(rule, options, tasks, positions, sum(target.numel() for target in out), uniform, key)
    results, first = [], 0
    for target, rows in zip(out, positions, strict=True):
        present = [t for t, row in enumerate(rows) if row is not None]

        def apply(X: Tensor, start: int, present: list[int] = present, first: int = first) -> Tensor:
            if rule == "graddrop":
                leak = torch.tensor([options[t] for t in present], dtype=torch.float64).to(X.device) if options else None
                at, M = first + start, X.shape[1]
                if uniform is not None:
                    return graddrop(X, leak, uniform[at : at + M])
                assert key is not None
                return graddrop(X, leak, uniform_numbers(key, at, M))
            if rule == "sign_agreement":
                return sign_agreement(X, options[0], options[1] != 0)
            return trimmed_mean(X, int(options[0])) if rule == "trimmed_mean" else median(X)

        results.append(_combined(rows, apply, target).view(target.shape))
        first += target.numel()
    for target, result in zip(out, results, strict=True):
        target.copy_(result + target.double() if accumulate else result)
    if key is not None and uniform is None and rule == "graddrop":
        key[1] += 1


def _check(
    rule: str,
    options: Sequence[float],
    tasks: int,
    positions: Sequence[Sequence[Tensor | None]],
    numel: int,
    uniform: Tensor | None,
    key: Tensor | None,
) -> None:
    """What the compiled kernels refuse, too."""
    counts = {"graddrop": {0, tasks}, "sign_agreement": {2}, "trimmed_mean": {1}, "median": {0}}
    if rule not in counts:
        raise RuntimeError(f"gradsurgery: no coordinate-wise rule is called {rule}")
    if len(options) not in counts[rule]:
        raise RuntimeError(f"gradsurgery: {rule} takes {max(counts[rule])} options, found {len(options)}")
    if rule == "graddrop":
        if (uniform is None) == (key is None):
            raise RuntimeError("gradsurgery: graddrop takes either uniform or key")
        if uniform is not None and uniform.numel() != numel:
            raise RuntimeError(f"gradsurgery: uniform must have {numel} elements")
    if rule == "trimmed_mean":
        for rows in positions:
            present = sum(row is not None and row.numel() > 0 for row in rows)
            if present and not 0 <= 2 * options[0] < present:
                raise RuntimeError(f"gradsurgery: 2 * trim must be less than the {present} gradients at one position")


LIBRARY.impl("coordinatewise_", coordinatewise_, "CompositeExplicitAutograd")
