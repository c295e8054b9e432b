"""PCGrad: project each task's gradient off those it conflicts with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients

from .registry import NO_STEP, Method, Solution, Step, check_gram, present_count, register


@register(
    "pcgrad",
    family="gram",
    paper="Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020 (arXiv:2001.06782)",
    properties=(
        "linear_under_scaling",
        "sum_without_conflict",
        "weights_at_least_one",
        "weights_nonnegative",
        "zero_row_neutral",
        "one_task_identity",
    ),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class PCGrad(Method):
    """g_i ← g_i − (g_i·g_j / ‖g_j‖²) g_j wherever g_i·g_j < 0, j in a random order for each i; then Σ g_i.

    Computed in Gram space: T scans over K instead of T^2 passes over the gradients, and the same to rounding. Tasks with a zero
    gradient neither project nor are projected on. Not non-conflicting for T >= 3.

    Options:
        order: "random", an independent order for each task and step, as in the paper; "ascending"; or an int64 tensor [T, T] whose
            row i is the order in which task i meets the others.
        include_self: also meet j = i, as the authors' and several other implementations do; the paper does not.
        reduction: "sum" (the paper), or "mean" over the tasks present.
        seed: of the random orders of a ``GradientAggregator``, whose state is (seed, step). Without state (``gradsurgery.weights``,
            ``gradsurgery.aggregate``) None draws from torch's default generator; an integer gives the order of its step 0.
    """

    order: Literal["random", "ascending"] | Tensor = "random"
    include_self: bool = False
    reduction: Literal["sum", "mean"] = "sum"
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.order, Tensor):
            _check_order(self.order)
        elif self.order not in ("random", "ascending"):
            raise ValueError(f"order: expected 'random', 'ascending' or an int64 tensor [T, T], found {self.order!r}.")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction: expected 'sum' or 'mean', found {self.reduction!r}.")
        if self.seed is not None and not isinstance(self.seed, int):
            raise TypeError(f"seed: expected an integer or None, found {type(self.seed).__name__}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: expected an integer of 64 bits, found {self.seed}.")

    def initial_state(self) -> dict[str, Tensor]:
        """The counter (seed, step) behind the random orders."""
        random = isinstance(self.order, str) and self.order == "random"
        return {"key": torch.tensor([self.seed or 0, 0], device="cpu")} if random else {}

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        check_gram(gram)
        order, key = self._arrange(gram.shape[-1], gram.device, step.state.get("key"))
        return ops.pcgrad_weights(gram.contiguous(), order, key, self.include_self, self._scale(gram.shape[-1], step))

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        T = grads.tasks
        order, key = self._arrange(T, grads.device, step.state.get("key"))
        scale = 1.0 if self.reduction == "sum" else 1.0 / sum(grads.present if step.present is None else step.present)
        K, w = ops.pcgrad_(out, grads.entries, T, grads.stacked, order, key, self.include_self, scale, accumulate)
        return Solution(K, w)

    def small_matrix_(self, out: Any, grads: Tensor) -> bool:
        problem = ops.small_matrix(out, grads)
        if problem is None:
            return False
        T = problem[2]
        order, key = self._arrange(T, _CPU, None)
        scale = 1.0 if self.reduction == "sum" else 1.0 / T
        ops.pcgrad_small_(problem, out, order, key, self.include_self, scale)
        return True

    def _scale(self, tasks: int, step: Step) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / present_count(tasks, step)

    def _arrange(self, tasks: int, device: torch.device, key: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(order, key), of which at most one is given; ``key`` is the state's, if there is one."""
        if isinstance(self.order, Tensor):
            if self.order.shape[0] != tasks:
                raise ValueError(f"order: expected shape [{tasks}, {tasks}] for {tasks} tasks, found {list(self.order.shape)}.")
            return self.order.to(device, torch.int64).contiguous(), None
        if self.order == "ascending":
            return None, None
        if key is not None:
            return None, key
        if self.seed is not None:
            key = torch.tensor([self.seed, 0], device="cpu")
        elif _is_compiling():  # the compiler knows no random_
            key = torch.randint(2**63 - 1, (2,), device="cpu")
        else:
            key = _drawn.key.random_()
        return None, key if device.type == "cpu" else key.to(device)


_CPU = torch.device("cpu")
_is_compiling = torch.compiler.is_compiling


class _Drawn(threading.local):
    """The key of a call without state, one a thread. Reused: drawing into a new tensor would double the cost of a small call."""

    def __init__(self) -> None:
        self.key = torch.empty(2, dtype=torch.int64, device="cpu")


_drawn = _Drawn()


def _check_order(order: Tensor) -> None:
    if order.dim() != 2 or order.shape[0] != order.shape[1] or order.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"order: expected an int64 tensor [T, T], found {order.dtype} of shape {list(order.shape)}.")
    if order.device.type != "cuda":  # there the check would wait for the device; the kernel answers NaN instead
        expected = torch.arange(order.shape[0], device=order.device)
        if not bool((order.sort(dim=1).values == expected).all()):
            raise ValueError(f"order: expected every row to be a permutation of 0..{order.shape[0] - 1}, found {order.tolist()}.")
