"""What a step of surgery has to leave behind, the long way: T passes, float64 vectors, one aggregation; and what a loop left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradsurgery as gs

Gradients = dict[str, Tensor | None]


def separate_passes(
    parameters: Mapping[str, nn.Parameter],
    losses: Mapping[str, Sequence[Tensor]],
    surgery: gs.GradientAggregator,
    scale: float = 1.0,
) -> Gradients:
    """Gradients by parameter: of those that several tasks reach, surgery's, in float64; of the others their one task's own.

    Args:
        parameters: by name.
        losses: of every declared task, in order; several where it has several batches in the step, none where it is absent.
        surgery: a fresh aggregator, whose ``aggregate`` gets the flat vectors.
        scale: of the losses during the passes, as a gradient scaler's.
    """
    rows: dict[str, Gradients] = {}
    for task, batches in losses.items():
        rows[task] = dict.fromkeys(parameters)
        for loss in batches:
            found = torch.autograd.grad(loss * scale, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, g in zip(parameters, found, strict=True):
                known = rows[task][name]
                rows[task][name] = known if g is None else g / scale if known is None else known + g / scale
    owners = {name: [task for task in losses if rows[task][name] is not None] for name in parameters}
    result: Gradients = {name: rows[tasks[0]][name] if len(tasks) == 1 else None for name, tasks in owners.items()}
    shared = [name for name, tasks in owners.items() if len(tasks) > 1]
    if shared:
        flat = [
            torch.cat([_or_zeros(rows[task][name], parameters[name]).double().flatten() for name in shared]) if batches else None
            for task, batches in losses.items()
        ]
        combined = surgery.aggregate(flat)
        assert surgery.statistics().conflicts, "the first step must be one where surgery matters"
        pieces = combined.split([parameters[name].numel() for name in shared])
        result |= {name: piece.view_as(parameters[name]) for name, piece in zip(shared, pieces, strict=True)}
    return result


def _or_zeros(g: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if g is None else g


def assert_same_gradients(actual: Gradients, expected: Gradients, rtol: float = 1e-5) -> None:
    """Own gradients to the bit, surgery's within ``rtol`` of the largest among them, and None where None is due."""
    largest = max((float(g.abs().max()) for g in expected.values() if g is not None and g.dtype == torch.float64), default=0.0)
    for name, g in expected.items():
        found = actual[name]
        assert (found is None) == (g is None), name
        if found is not None and g is not None and g.dtype == torch.float64:
            assert float((found.double() - g).abs().max()) <= rtol * largest, name
        elif found is not None:
            assert torch.equal(found, g), name


@contextmanager
def recorded_steps(net: nn.Module) -> Iterator[list[Gradients]]:
    """The gradients of ``net``'s parameters at every step of any optimizer inside."""
    steps: list[Gradients] = []

    def record(*_: object) -> None:
        steps.append({name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()})

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield steps
    finally:
        handle.remove()


class Watched(nn.Module):
    """A loss that remembers what it was."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.values = loss, list[float]()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        value = self.loss(prediction.float(), target)
        self.values.append(value.item())
        return value

    def fell(self, window: int) -> bool:
        """Whether the mean of the last values is clearly below that of the first."""
        return sum(self.values[-window:]) < 0.9 * sum(self.values[:window])
