"""Gradients of every form and layout the operators take: the same samples feed agreement, opcheck and bit-equality tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Make = Callable[..., Tensor]


@dataclass
class Sample:
    """Arguments of ``gram``: task-major entries [T*P], or [P] stacked tensors."""

    grads: list[Tensor | None]
    tasks: int
    stacked: bool = False

    @property
    def pieces(self) -> int:
        return len(self.grads) if self.stacked else len(self.grads) // self.tasks

    def rows(self, piece: int) -> list[Tensor | None]:
        """The T gradients of one position."""
        if self.stacked:
            whole = self.grads[piece]
            assert whole is not None
            return list(whole.unbind(0))
        return self.grads[piece :: self.pieces]

    def matrix(self) -> Tensor:
        """Everything side by side in float64, absent gradients as zeros. [T, N]"""
        columns = []
        for p in range(self.pieces):
            rows = self.rows(p)
            numel = next((row.numel() for row in rows if row is not None), 0)
            like = next(g for g in self.grads if g is not None)
            zeros = torch.zeros(numel, dtype=torch.float64, device=like.device)
            columns.append(torch.stack([zeros if row is None else row.detach().double().reshape(-1) for row in rows]))
        return torch.cat(columns, dim=1)

    def empty(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """An output a position, filled with NaN; of shape [3] where no task has a gradient. [P]"""
        result = []
        for p in range(self.pieces):
            like = next((row for row in self.rows(p) if row is not None), None)
            if like is None:
                anything = next(g for g in self.grads if g is not None)
                result.append(torch.full((3,), torch.nan, dtype=dtype or anything.dtype, device=anything.device))
            else:
                result.append(torch.full_like(like, torch.nan, dtype=dtype))
        return result


def _stepped(make: Make, tasks: int) -> Sample:
    return Sample([make(37, 30)[::2, ::3] for _ in range(tasks)], tasks)


def _transposed(make: Make, tasks: int) -> Sample:
    return Sample([make(23, 41).T if t % 2 else make(41, 23) for t in range(tasks)], tasks)


def _channels_last(make: Make, tasks: int) -> Sample:
    return Sample([make(2, 5, 7, 3).contiguous(memory_format=torch.channels_last) for _ in range(tasks)], tasks)


def _layouts_differ(make: Make, tasks: int) -> Sample:
    forms: list[Callable[[], Tensor]] = [
        lambda: make(2, 5, 7, 3),
        lambda: make(2, 5, 7, 3).contiguous(memory_format=torch.channels_last),
        lambda: make(3, 7, 5, 2).permute(3, 2, 1, 0),
        lambda: make(2, 5, 7, 6)[..., ::2],
        lambda: make(5, 1, 3).expand(2, 5, 7, 3),
    ]
    return Sample([forms[(t + 1) % len(forms)]() for t in range(tasks)], tasks)


def _expanded(make: Make, tasks: int) -> Sample:
    """What ``loss.mean()`` sends back: one number, many coordinates."""
    return Sample([make(1).expand(1500) if t % 2 == 0 else make(1500) for t in range(tasks)], tasks)


def _lists_with_gaps(make: Make, tasks: int) -> Sample:
    shapes = [(7,), (3, 5), (), (2, 3, 4), (1025,), (1,)]
    grads: list[Tensor | None] = []
    for t in range(tasks):
        for p, shape in enumerate(shapes):
            grads.append(None if (t + p) % 3 == 1 and not (t == 0 and p < 5) else make(*shape))
    if tasks > 1:
        grads[(tasks - 1) * len(shapes) : tasks * len(shapes)] = [None] * len(shapes)  # an absent task
    return Sample(grads, tasks)


def _unreached(make: Make, tasks: int) -> Sample:
    """A position, in the middle and at the end, that no task reaches."""
    return Sample([g for _ in range(tasks) for g in (make(9), None, make(4, 2), None)], tasks)


def _stacked_noncontiguous(make: Make, tasks: int) -> Sample:
    whole = make(6, tasks, 40).transpose(0, 1)  # [T, 6, 40], tasks interleaved
    return Sample([whole, make(2 * tasks, 11)[::2], make(13, tasks).T], tasks, stacked=True)


def _stacked_channels_last(make: Make, tasks: int) -> Sample:
    return Sample([make(tasks, 4, 5, 6).contiguous(memory_format=torch.channels_last)], tasks, stacked=True)


def _many_small(make: Make, tasks: int) -> Sample:
    return Sample([make(p % 5, 2) if p % 7 else make() for _ in range(tasks) for p in range(300)], tasks)


LAYOUTS: dict[str, Callable[[Make, int], Sample]] = {
    "contiguous": lambda make, tasks: Sample([make(3, 50, 7) for _ in range(tasks)], tasks),
    "scalars": lambda make, tasks: Sample([make() for _ in range(tasks)], tasks),
    "empty": lambda make, tasks: Sample([make(0, 3) for _ in range(tasks)], tasks),
    "stepped": _stepped,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "layouts_differ": _layouts_differ,
    "expanded": _expanded,
    "lists_with_gaps": _lists_with_gaps,
    "unreached": _unreached,
    "stacked": lambda make, tasks: Sample([make(tasks, 31, 9), make(tasks, 4)], tasks, stacked=True),
    "stacked_noncontiguous": _stacked_noncontiguous,
    "stacked_channels_last": _stacked_channels_last,
    "many_small": _many_small,
}


def maker(dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0, requires_grad: bool = False) -> Make:
    """Draws normal tensors of a shape."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        return drawn.requires_grad_() if requires_grad else drawn

    return make


def sample(layout: str, tasks: int, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> Sample:
    """One layout filled with normal numbers."""
    return LAYOUTS[layout](maker(dtype, device, seed), tasks)


def weights_of(tasks: int, device: torch.device | str = "cpu", seed: int = 1) -> Tensor:
    """Weights of both signs, float64. [T]"""
    return torch.randn(tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)
