"""Random weighting: Philox 4x32-10 with Python's integers, Box and Muller with its floats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def words(seed: int, step: int, group: int, task: int) -> list[int]:
    """The first four random words of a task."""
    key = [seed & _WORD, (seed >> 32) & _WORD]
    c = [step & _WORD, (step >> 32) & _WORD, group, task << 16]
    for _ in range(10):
        even, odd = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(odd >> 32) ^ c[1] ^ key[0], odd & _WORD, (even >> 32) ^ c[3] ^ key[1], even & _WORD]
        key = [(key[0] + 0x9E3779B9) & _WORD, (key[1] + 0xBB67AE85) & _WORD]
    return c


def normal(seed: int, step: int, group: int, task: int) -> float:
    """A standard normal draw."""
    a, b, c, d = words(seed, step, group, task)
    radius, angle = (((high >> 5) * 2**26 + (low >> 6) + 0.5) / 2**53 for high, low in ((a, b), (c, d)))
    return math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)


def weights(tasks: list[int], seed: int, step: int = 0, group: int = 0) -> list[float]:
    """softmax of the draws of these tasks."""
    each = [math.exp(normal(seed, step, group, task)) for task in tasks]
    return [x / sum(each) for x in each]


def random(rows: Tensor, seed: int = 0) -> Tensor:
    """The combination of the first step. [N]"""
    return torch.tensor(weights(list(range(len(rows))), seed), dtype=torch.float64) @ rows.double()
