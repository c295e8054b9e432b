"""Lightning: what surgery did, in the Trainer's log.

Training needs nothing of this file. With automatic optimisation ``training_step`` returns ``self.surgery.total(losses)``; with
manual optimisation ``self.manual_backward`` gets it. Precision plugins, accumulation, clipping and checkpoints go on as with any
other loss, since the total is a scalar and the aggregator a submodule.
"""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "gradsurgery.integrations.lightning: expected the package lightning, found none. Try `pip install lightning`."
    ) from error

from gradsurgery.aggregator import GradientAggregator


class SurgeryStatistics(Callback):  # type: ignore[misc]
    """Logs ``statistics().scalars()`` of every aggregator in the module: ``surgery/cosine/seg-depth``, ``surgery/weight/seg``, …

    The first part of a name is the aggregator's place in the module. Statistics are read, and a device is waited for, at the steps
    that the Trainer logs (``log_every_n_steps``) and at no other. Of micro-batches whose gradients are accumulated, the last is
    logged; of a batch with a single task its weight and loss, and of one without any nothing.
    """

    def __init__(self) -> None:
        self._surgeries: dict[str, GradientAggregator] = {}
        self._before: dict[str, int | None] = {}  # each aggregator's last step when the batch began
        self._global_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.loggers:
            raise ValueError("SurgeryStatistics: expected a Trainer with a logger, found none. Leave logger=False out.")
        modules = pl_module.named_modules()
        self._surgeries = {name: module for name, module in modules if isinstance(module, GradientAggregator)}
        if not self._surgeries:
            raise ValueError(
                "SurgeryStatistics: expected a GradientAggregator among the module's submodules, found none. Make it one with "
                "`self.surgery = GradientAggregator(...)` in __init__; then its state is in the checkpoints, too."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._global_step = trainer.global_step
        self._before = {name: _last_step(surgery) for name, surgery in self._surgeries.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # As Lightning's own callbacks do: no public name tells which steps are logged, and module.log() would repeat the values of
        # an absent task until the epoch's end.
        if trainer.global_step == self._global_step or not trainer._logger_connector.should_update_logs:
            return
        scalars = {
            f"{name}/{key}": value
            for name, surgery in self._surgeries.items()
            if _last_step(surgery) != self._before[name]
            for key, value in surgery.statistics().scalars().items()
        }
        if scalars:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _last_step(surgery: GradientAggregator) -> int | None:
    """Which step its statistics are of; None before the first."""
    history = surgery.history
    return history[-1].step if history else None
