"""What the methods that keep tensors of the gradients' size have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.capture.gradients import TaskGradients

from .preference import presence
from .registry import Method, State, Step


class BufferedMethod(Method):
    """A method whose memory holds a number a coordinate and task, besides some a task.

    The buffers ``buffer_p`` [T, ...] have the shapes of the gradients, in float32 (float64 for gradients of float64), and lie as
    the gradients do. A task without gradient in a step is skipped: its slice stays as it is, and it weighs nothing. Where a present
    task has no gradient at one position, that counts as zeros.

    A step with a gradient or loss that is not finite changes no memory at all, which one more read of the gradients buys: the
    Gram matrix of what arrived is known before any buffer is written. The result is NaN then, so that a gradient scaler skips it.
    """

    def task_numbers(self, tasks: int, device: torch.device) -> dict[str, Tensor]:
        """The memory beside the buffers, as it is before the first step. float64"""
        raise NotImplementedError

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        return self.task_numbers(grads.tasks, grads.device) | {f"buffer_{p}": _zeros(grads, p) for p in range(grads.pieces)}

    def check_fits(self, state: State, grads: TaskGradients) -> None:
        buffers = self.buffers(state)
        shapes = [list(grads.shape(p) or ()) for p in range(grads.pieces)]
        kept = [list(buffer.shape[1:]) for buffer in buffers]
        if kept and shapes != kept:
            raise ValueError(
                f"gradients: expected the shapes {kept} of earlier steps, as method {self.spec.name!r} keeps buffers of the "
                f"gradients' shape; found {shapes}. Give every batch one size (drop_last=True in the DataLoader), or do surgery on "
                "the gradients of the shared parameters, whose shapes stay."
            )
        for p, buffer in enumerate(buffers):
            if buffer.dtype != torch.float64 and _buffer_dtype(grads.rows(p)) == torch.float64:
                raise ValueError(
                    f"gradients: expected float32, bfloat16 or float16 as in earlier steps, for which method {self.spec.name!r} "
                    f"keeps buffers of {buffer.dtype}; found float64 at tensor {p}. Use one dtype from the first step on, or begin "
                    "anew with another GradientAggregator."
                )

    def buffers(self, state: State) -> list[Tensor]:
        """The buffers of a state, in the order of the positions. [P]"""
        return [state[f"buffer_{p}"] for p in range(sum(name.startswith("buffer_") for name in state))]

    def begin(self, grads: TaskGradients, step: Step, grouped: bool) -> tuple[State, list[Tensor]]:
        """The memory of a step, fresh for a call without, and its buffers.

        Raises:
            ValueError: groups of tensors were asked for, or the gradients have other shapes than the buffers.
        """
        if grouped:
            raise ValueError(
                f"group_by: method {self.spec.name!r} works on the whole gradient, as its buffers belong to that; use one group."
            )
        state = step.state if "buffer_0" in step.state else self.task_state(grads)
        self.check_fits(state, grads)
        return state, self.buffers(state)

    def weights(self, gram: Tensor, step: Step | None = None) -> Tensor:
        raise ValueError(
            f"method: {self.spec.name!r} keeps buffers of the gradients' size, which a Gram matrix cannot give. Use "
            "GradientAggregator, or gradsurgery.aggregate for its first step."
        )


def present_mask(grads: TaskGradients, step: Step) -> Tensor | None:
    """Which tasks have a gradient, on the gradients' device; None for all. [T] bool"""
    like = next(g for g in grads.entries if g is not None)
    numbers = presence(step if step.present is not None else Step(present=grads.present), like)
    return None if numbers is None else numbers > 0


def among(mask: Tensor | None, values: Tensor, otherwise: float) -> Tensor:
    """The values of the tasks present, and ``otherwise`` for the others. [T]"""
    return values if mask is None else torch.where(mask, values, otherwise)


def remember(valid: Tensor, mask: Tensor | None, kept: Tensor, new: Tensor) -> None:
    """kept <- new, for the tasks present, in a valid step."""
    kept.copy_(torch.where(valid if mask is None else valid & mask, new, kept))


def _buffer_dtype(rows: Sequence[Tensor | None]) -> torch.dtype:
    """Of the buffer for the tasks' gradients at one position."""
    return torch.float64 if any(row is not None and row.dtype == torch.float64 for row in rows) else torch.float32


def _zeros(grads: TaskGradients, piece: int) -> Tensor:
    """A buffer [T, ...] whose slices lie in memory like the gradients of that position."""
    rows = grads.rows(piece)
    like = next(row for row in rows if row is not None)
    slice_strides = torch.empty_like(like, device="meta").stride()  # dense, in the order of the gradient's dimensions
    shape = (grads.tasks, *like.shape)
    return torch.empty_strided(shape, (like.numel(), *slice_strides), dtype=_buffer_dtype(rows), device=like.device).zero_()
