"""Hugging Face accelerate: one surgery a step, on the gradients of all its micro-batches, with the accelerator's scaler.

Surgery on each micro-batch needs nothing of this file: ``accelerator.backward(surgery.total(losses))`` adds up what the method
makes of each. Either way ``accelerator.register_for_checkpointing(surgery)`` puts the surgery's state beside the model's. The
aggregator itself is not prepared: it has no parameters, and its memory goes to the gradients' device by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

try:
    from accelerate import Accelerator, DistributedType
except ImportError as error:
    raise ImportError(
        "gradsurgery.integrations.accelerate: expected the package accelerate, found none; pip install accelerate."
    ) from error
from torch import Tensor

from gradsurgery.aggregator import GradientAggregator


def backward(
    accelerator: Accelerator,
    surgery: GradientAggregator,
    losses: Mapping[str, Any] | Sequence[Any],
    shared: Any = None,
    inputs: Any = None,
    retain_graph: bool = False,
    **how: Any,
) -> None:
    """``accelerator.backward`` for the losses of several tasks, with one surgery a step, on gradients of all its micro-batches.

    ::

        with accelerator.accumulate(model):
            backward(accelerator, surgery, losses_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()

    While gradients are accumulated they are collected, each task's by itself; the micro-batch that ends the step
    (``accelerator.sync_gradients``) is followed by surgery on the sums. Each micro-batch may have some of the tasks, or one. Losses
    are divided by ``accelerator.gradient_accumulation_steps`` and scaled by the accelerator's scaler, as ``accelerator.backward``
    does it; the method decides on unscaled gradients. A step that was given up in between is dropped with ``surgery.reset()``.

    Args:
        accelerator: of one process; or of several whose models are replicated, with an aggregator that was built with
            ``process_group=torch.distributed.group.WORLD``: without it, each rank would decide from its own gradients.
        surgery: the aggregator, which was not prepared.
        losses: as for ``surgery.backward``.
        shared, inputs: as for ``surgery.backward``, the same in all micro-batches of a step, and on every rank.
        retain_graph: keep the graph for another backward pass.
        how: ``gram_on``, ``memory`` and ``passes`` of ``surgery.backward``; the first two want steps of one micro-batch, as what
            is collected is whole.

    Raises:
        RuntimeError: the accelerator is distributed and the aggregator is not, or an engine of its own (DeepSpeed, Megatron) runs
            its backward.
        TypeError, ValueError, RuntimeError: as for ``surgery.backward``.
    """
    share = 1 / accelerator.gradient_accumulation_steps
    collect_or_finish(accelerator, surgery, losses, share, shared, inputs, retain_graph, **how)


def collect_or_finish(
    accelerator: Accelerator,
    surgery: GradientAggregator,
    losses: Mapping[str, Any] | Sequence[Any],
    factor: Tensor | float,
    shared: Any = None,
    inputs: Any = None,
    retain_graph: bool = False,
    **how: Any,
) -> None:
    """Collects the gradients of a micro-batch; after the last one of a step, surgery.

    Args:
        factor: by which the losses are multiplied.
    """
    check_processes(accelerator, surgery)
    losses = _multiplied(losses, factor)
    if accelerator.sync_gradients:
        surgery.backward(losses, shared, inputs, retain_graph, accelerator.scaler, **how)
    else:
        surgery.collect(losses, shared, inputs, retain_graph, accelerator.scaler)


def check_processes(accelerator: Accelerator, surgery: GradientAggregator) -> None:
    """Raises unless the gradients are of one process, or the aggregator is told of the others, and autograd computes them."""
    if accelerator.distributed_type.value.startswith("MULTI_"):
        if not surgery.several:
            raise RuntimeError(
                f"surgery: expected an aggregator with process_group= for {accelerator.distributed_type}, found none. Each rank "
                "would decide on its own gradients, and the models would drift apart. Build it with "
                "process_group=torch.distributed.group.WORLD, once the Accelerator is there."
            )
    else:
        check_one_process(accelerator)


def check_one_process(accelerator: Accelerator) -> None:
    """Raises unless gradients are those of one process, and torch's autograd computes them."""
    if accelerator.distributed_type != DistributedType.NO:
        raise RuntimeError(
            f"accelerator: expected one process without an engine (DistributedType.NO), found {accelerator.distributed_type}. Each "
            "rank would decide on its own gradients, and the models would drift apart. Train on one device."
        )


def _multiplied(losses: Any, factor: Tensor | float) -> Any:
    """Losses in their form; what is no tensor is left for the surgery to refuse."""
    if isinstance(losses, Tensor):
        return losses * factor
    if isinstance(losses, Mapping):
        return {name: _multiplied(loss, factor) for name, loss in losses.items()}
    if isinstance(losses, (list, tuple)):
        return [_multiplied(loss, factor) for loss in losses]
    return losses
