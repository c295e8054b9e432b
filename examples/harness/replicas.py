"""A problem's model on several ranks: DistributedDataParallel around trunk and heads, and batch statistics of the whole batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth  # type: ignore[import-untyped]

from harness.errors import RunError
from harness.precision import at_least_float32
from harness.problem import Problem
from harness.processes import average, world


class _Part(nn.Module):
    """Some of the problem's work, with the parameters that it trains; buffers are the same on every rank, and not sent."""

    def __init__(self, trained: list[nn.Parameter], work: Callable[..., Any]) -> None:
        super().__init__()
        self.trained, self.work = nn.ParameterList(trained), work

    def forward(self, *inputs: Any) -> Any:
        return self.work(*inputs)


class Replicas:
    """`problem.represent` and `problem.loss`; on several ranks their backward passes average the gradients of the parameters.

    Trunk and heads are wrapped one by one, so that a task that no rank has leaves its head alone, as in one process.

    Args:
        problem: whose model it is.
        averaged: whether something else averages the gradients: surgery on parameters does.
    """

    def __init__(self, problem: Problem, *, averaged: bool) -> None:
        self.problem, self.averaged = problem, averaged
        self._wrapped: dict[str, tuple[list[nn.Parameter], Callable[..., Any]]] = {}

    def represent(self, batch: Any) -> Any:
        """The trunk's output on this rank's part of the batch."""
        return self._part("", self.problem.model.trunk, self.problem.represent)(batch)

    def loss(self, task: str, features: Any, batch: Any) -> Tensor | None:
        """The loss of which the batch's is the mean over the ranks; None where no rank has a target."""
        loss: Tensor | None = self._part(task, self.problem.model.heads[task], partial(self.problem.loss, task))(features, batch)
        return loss

    def _part(self, name: str, module: nn.Module, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, wrapped anew where other parameters train than before (frozen for some epochs): DDP does not see that itself."""
        if world() == 1 or self.averaged:
            return work
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        before, wrapped = self._wrapped.pop(name, ([], None))
        if wrapped is None or [*map(id, before)] != [*map(id, trained)]:
            del wrapped  # and its hooks, before others come
            wrapped = DistributedDataParallel(_Part(trained, work)) if trained else work
        self._wrapped[name] = trained, wrapped
        return wrapped


class SynchronizedBatchNorm(_BatchNorm):
    """Batch normalization by the statistics of all ranks' equal parts of a batch: torch.nn.SyncBatchNorm has no CPU kernel."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        others = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = average(x.mean(others))
        centered = x - mean.view(shape)
        variance = average(centered.square().mean(others))
        if self.track_running_stats:
            count = world() * x.numel() // x.shape[1]
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[operator]
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
                self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
                self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)  # type: ignore[union-attr]
        result = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every batch normalization in `model` see the batches of all ranks, in place; parameters and buffers stay the same."""
    if world() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        if isinstance(module, _BatchNorm):
            module.__class__ = SynchronizedBatchNorm


def check_divisible(problem: Problem, batch_size: int) -> None:
    """Whether several ranks can do what one would.

    Raises:
        RunError: a batch that cannot be divided, or layers that draw random numbers for every sample.
    """
    if world() == 1:
        return
    if batch_size % world():
        raise RunError(
            f"--batch-size {batch_size}: expected a multiple of the {world()} processes, among which every batch is divided evenly."
        )
    for name, module in problem.model.named_modules():
        probability = _drops(module)
        if probability > 0:
            raise RunError(
                f"{name} ({type(module).__name__}) drops a share of {probability:g} at random, which {world()} processes would "
                "draw differently from one; set it to 0, or start one process."
            )


def _drops(module: nn.Module) -> float:
    if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
        return float(module.p)
    return float(module.dropout) if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) else 0.0
