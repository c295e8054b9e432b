"""Hugging Face Trainer: a mixin with which a Trainer's step is surgery on the losses of several tasks."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradsurgery.aggregator import GradientAggregator
from gradsurgery.capture.called import Called
from gradsurgery.capture.losses import scalar_loss

from .accelerate import check_one_process, collect_or_finish

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # the Trainer comes from the user's class, behind the mixin

FILE = "surgery.pt"
"""Where a checkpoint's folder has the surgery's state, beside ``optimizer.pt``."""


class SurgeryTrainerMixin(_Trainer):  # type: ignore[misc]
    """Surgery in a ``transformers.Trainer``, which stays in charge of everything else.

    ::

        class MultiTaskTrainer(SurgeryTrainerMixin, Trainer):
            def compute_losses(self, model, inputs):
                out = model(**inputs)
                return {"seg": ce(out["seg"], inputs["seg"]), "depth": l1(out["depth"], inputs["depth"])}

        MultiTaskTrainer(model, args, train_dataset=data, surgery=GradientAggregator("pcgrad", tasks=("seg", "depth"))).train()

    With ``gradient_accumulation_steps`` surgery is done once a step, on each task's gradient over all micro-batches, of which each
    may have one task only. The logged training loss is the sum of the tasks' losses, and so is the loss in evaluation, where no
    surgery is done. Checkpoints hold the surgery's state, and a run resumed from one goes on with the same numbers.

    Where ``compute_losses`` wants what the model's ``forward`` does not name, tell the Trainer: ``TrainingArguments(
    remove_unused_columns=False, label_names=[...])``. It drops such columns otherwise, and evaluates a loss only on batches that
    have the labels it knows of.

    Args:
        *args: the Trainer's.
        **kwargs: the Trainer's.
        surgery: the aggregator.
        shared: as for ``surgery.backward``: a module, parameters, or None for what two or more tasks reach.

    Raises:
        TypeError: ``surgery`` is no ``GradientAggregator``.
        ValueError: ``compute_loss_func`` or ``label_smoothing_factor``, which ``compute_losses`` would leave unused; or an
            ``optim`` that updates parameters inside the backward pass.
        RuntimeError: several processes, or DeepSpeed.
    """

    def __init__(self, *args: Any, surgery: GradientAggregator, shared: Any = None, **kwargs: Any) -> None:
        if not isinstance(surgery, GradientAggregator):
            raise TypeError(f"surgery: expected a GradientAggregator, found {type(surgery).__name__}.")
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            unused = "compute_loss_func" if self.compute_loss_func is not None else "label_smoothing_factor"
            raise ValueError(f"{unused}: expected none, as compute_losses() computes the losses; do there what it would have done.")
        optim = self.args.optim.value
        if "lomo" in optim or "layerwise" in optim:  # the hooks by which they update are not called, as surgery writes .grad itself
            raise ValueError(f"optim: expected one that steps after the backward pass, found {optim!r}, which updates inside it.")
        check_one_process(self.accelerator)
        self.surgery = surgery
        # A generator of parameters would be empty in the second step.
        self.shared = shared if shared is None or isinstance(shared, nn.Module) else list(shared)
        # The Trainer counts the labels of a step, and leaves the loss undivided, where the model would divide by their number.
        self._by_items = "num_items_in_batch" in inspect.signature(self.compute_losses).parameters
        self.model_accepts_loss_kwargs = self._by_items

    def compute_losses(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> Mapping[str, Tensor | None] | tuple[Mapping[str, Tensor | None], Any]:
        """The losses of the tasks that the batch has: a scalar by name.

        To be overridden. Each is a mean over the micro-batch, and the step's loss is the mean over its micro-batches. With a third
        parameter ``num_items_in_batch`` it is told how many labels other than -100 all micro-batches of the step have together
        (None for batches without "labels"); the losses are then sums divided by that number, and are only added up.

        Args:
            model: the model, as the Trainer has wrapped it.
            inputs: a batch, on the model's device.

        Returns:
            The losses; or the losses and the model's outputs (a dict, or a tuple whose first entry is not used), for predictions
            and ``compute_metrics``.
        """
        raise NotImplementedError(f"{type(self).__name__}: define compute_losses(self, model, inputs) -> dict of losses by task.")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the losses; in training its ``backward()`` collects gradients, and is surgery at the end of a step."""
        items = {"num_items_in_batch": num_items_in_batch} if self._by_items else {}
        found = self.compute_losses(model, inputs, **items)
        losses, outputs = found if isinstance(found, tuple) else (found, {})
        total = _sum(losses)
        if model.training and torch.is_grad_enabled():

            def backward(factor: Tensor) -> None:
                scaler = self.accelerator.scaler
                if scaler is not None:  # the surgery is told of it, and multiplies by it
                    factor = factor / scaler.scale(torch.ones_like(factor))
                collect_or_finish(self.accelerator, self.surgery, losses, factor, self.shared)

            total = Called.apply(torch.ones_like(total, requires_grad=True), total, backward)
        return (total, outputs) if return_outputs else total

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.surgery.reset()  # of a run that was stopped between two micro-batches
        return super()._inner_training_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.surgery.state_dict(), Path(output_dir) / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / FILE
        if file.is_file():
            self.surgery.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        else:
            warnings.warn(
                f"{type(self).__name__}: {checkpoint} has no {FILE}; the surgery goes on from its present state.",
                UserWarning,
                stacklevel=2,
            )


def _sum(losses: Any) -> Tensor:
    """The sum of a batch's losses, without graph.

    Raises:
        TypeError: not a dict, or a loss that is no scalar tensor.
        ValueError: there is none.
    """
    if not isinstance(losses, Mapping):
        raise TypeError(f"compute_losses: expected a dict of losses by task, found {type(losses).__name__}.")
    given = {name: loss for name, loss in losses.items() if loss is not None}
    if not given:
        raise ValueError("compute_losses: expected at least one task's loss, found none; leave out batches without labels.")
    terms = [torch.as_tensor(scalar_loss(loss, f"compute_losses()[{name!r}]")) for name, loss in given.items()]
    return torch.stack([term.to(terms[0].device, torch.float32) for term in terms]).sum()
