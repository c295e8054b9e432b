"""The training loop: epochs, validation, checkpoints at step boundaries, and resumption to the same numbers."""

import argparse
import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

import gradsurgery as gs
from gradsurgery.balancers import EpochBalancer
from harness.arguments import configuration
from harness.checkpoint import save_checkpoint
from harness.errors import RunError
from harness.interrupt import Interrupt
from harness.log import NoLog, RunLog
from harness.metric import score
from harness.precision import Precision, choose_device
from harness.problem import Problem
from harness.processes import agreed, attempt, barrier, is_first, signalled, world
from harness.progress import StepBar
from harness.replicas import check_divisible, synchronize_batch_norm
from harness.reproducibility import EpochSampler, PartOfBatches, random_state, restore_random_state
from harness.resume_point import find_state, load_state, save_state
from harness.run_folder import RunFolder
from harness.schedule import EarlyStopping, learning_rate_factor
from harness.step import StepResult, SurgicalStep, make_balancer, make_surgery


class Training:
    """A run and its whole state: model, optimizer, schedule, scaler, surgery, balancer, random states, position, log.

    Every number is a function of the arguments: a run that was stopped, or killed, and resumed writes the same log as one that
    was not. Processes that train together have the same state; how many they are changes nothing but rounding.
    """

    def __init__(self, problem: Problem, arguments: argparse.Namespace, folder: RunFolder, console: Console) -> None:
        self.problem, self.arguments, self.folder, self.console = problem, arguments, folder, console
        self.device = agreed(attempt(lambda: choose_device(arguments.device)))
        self.precision = Precision(arguments.amp, self.device)
        self.sampler = EpochSampler(_sized(problem.train_data), arguments.seed)
        samples = len(self.sampler)
        self.batch_size = min(arguments.batch_size, samples)  # of all processes
        agreed(attempt(self._check))
        problem.model.to(self.device)
        if arguments.double:
            problem.model.double()
        synchronize_batch_norm(problem.model, self.device)
        if arguments.compile:
            problem.model.compile_parts(several_passes=arguments.form == "parameters")
        self.surgery = agreed(attempt(lambda: make_surgery(problem, arguments)))
        self.balancer = agreed(attempt(lambda: make_balancer(problem, arguments, self.surgery)))
        groups = problem.model.parameter_groups(arguments.lr, arguments.lr if arguments.head_lr is None else arguments.head_lr)
        if self.balancer is not None:
            self.balancer.to(self.device)
            if learned := list(self.balancer.parameters()):
                groups.append({"params": learned, "lr": arguments.balancer_lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=arguments.lr, weight_decay=arguments.weight_decay)
        self.train_batches = self._loader(problem.train_data, self.sampler)
        self.val_batches = self._loader(problem.val_data, None)
        self.steps_per_epoch = samples // self.batch_size
        factor = learning_rate_factor(arguments.schedule, arguments.epochs * self.steps_per_epoch, arguments.warmup_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.stopping = EarlyStopping(arguments.early_stop)
        self.update = SurgicalStep(problem, self.surgery, self.balancer, self.optimizer, self.precision,
                                   form=arguments.form, clip_norm=arguments.clip_norm)  # fmt: skip
        self.epoch = self.position = self.step = 0  # position: steps done in this epoch
        if not arguments.resume and is_first():
            folder.create(configuration(arguments))
        barrier()
        log_position = agreed(attempt(self._restore)) if arguments.resume and find_state(folder.last) else 0
        self.log: RunLog | NoLog = NoLog(self._columns())
        if is_first():
            self.log = RunLog(folder.log, self._columns(), folder.tensorboard, position=log_position, step=self.step)

    def _check(self) -> None:
        if self.arguments.double and self.arguments.amp != "off":
            raise RunError(f"--double --amp {self.arguments.amp}: expected one of the two; leave the other out.")
        check_divisible(self.problem, self.batch_size)

    @property
    def finished(self) -> bool:
        epochs: int = self.arguments.epochs
        return self.epoch >= epochs or self.stopping.stop

    @property
    def place(self) -> str:
        """The device, and how many processes have one of its kind each."""
        return str(self.device) if world() == 1 else f"{world()} processes, each on {self.device.type}"

    def run(self) -> int | None:
        """Train to the end, or to the first SIGTERM or Ctrl-C, whose number it returns after writing a checkpoint."""
        try:
            with Interrupt() as interrupt:
                while not self.finished:
                    completed = self._train_epoch(interrupt)
                    if completed:
                        if isinstance(self.balancer, EpochBalancer):
                            self.balancer.end_epoch()
                        self._validate()
                        self.epoch, self.position = self.epoch + 1, 0
                    self.save()
                    number = signalled(interrupt.signal)
                    if number is not None and not self.finished:
                        return number
        finally:
            self.log.close()
        return None

    def _train_epoch(self, interrupt: Interrupt) -> bool:
        """Run what is left of the epoch; False when a signal cut it short."""
        self.problem.model.train()
        self.surgery.train()
        self.problem.start_epoch(self.epoch)
        self.sampler.enter(self.epoch, self.position * self.batch_size)
        with StepBar(self.console, self.epoch, self.arguments.epochs, self.position, self.steps_per_epoch) as bar:
            for batch in self._on_device(self.train_batches):
                result = self.update(batch)
                self.step += 1
                self.position += 1
                if self.step % self.arguments.log_every == 0:
                    self.log.row(self.step, self.epoch, self._measurements(result))
                self.scheduler.step()
                bar.advance(result.losses)
                if signalled(interrupt.signal) is not None:
                    break
        return bool(self.position == self.steps_per_epoch)

    def _validate(self) -> None:
        self.problem.model.eval()
        with torch.no_grad(), self.precision.autocast():
            metrics = self.problem.evaluate(self._on_device(self.val_batches))
        value = score(metrics, self.problem.floors, self.problem.metrics)
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log.row(self.step, self.epoch, {**values, "score": value})
        if self.stopping.update(self.epoch, value) and is_first():
            save_checkpoint(self.folder.best, {"model": self.problem.model.state_dict(), "epoch": self.epoch, "score": value})
        primary = [metric.name for metric in self.problem.metrics if metric.primary and metric.name in metrics]
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in primary)
        self.console.print(f"epoch {self.epoch + 1}/{self.arguments.epochs}  step {self.step}  {shown}  score {value:.4f}",
                           highlight=False, soft_wrap=True)  # fmt: skip

    def _loader(self, data: Dataset[Any], sampler: EpochSampler | None) -> DataLoader[Any]:
        """With a sampler (training) every batch is full. Workers live as long as the run, and so does what they keep in memory."""
        batches = BatchSampler(sampler or SequentialSampler(_sized(data)), self.batch_size, drop_last=sampler is not None)
        return DataLoader(
            data, batch_sampler=PartOfBatches(batches),
            num_workers=self.arguments.workers, persistent_workers=self.arguments.workers > 0,
            collate_fn=self.problem.collate, pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(self.arguments.seed),  # leaves the global random state alone
        )  # fmt: skip

    def _on_device(self, batches: Iterable[Any]) -> Iterator[Any]:
        def moved(tensor: Tensor) -> Tensor:
            dtype = torch.float64 if self.arguments.double and tensor.is_floating_point() else None
            return tensor.to(self.device, dtype, non_blocking=True)

        for batch in batches:
            yield tree_map_only(torch.Tensor, moved, batch)

    def _columns(self) -> list[str]:
        tasks = self.problem.tasks
        return [
            "lr", *(f"loss/{task}" for task in tasks), *(f"balance/{task}" for task in tasks),
            *(f"variance/{task}" for task in tasks if isinstance(self.balancer, gs.UncertaintyWeighting)),
            *(f"weight/{task}" for task in tasks), *(f"norm/{task}" for task in tasks),
            *(f"cosine/{one}-{other}" for one, other in combinations(tasks, 2)), "conflicts", "nonfinite",
            *(f"val/{metric.name}" for metric in self.problem.metrics), "score",
        ]  # fmt: skip

    def _measurements(self, result: StepResult) -> dict[str, float]:
        """One training row: reads the step's statistics, which wait for the device (as losses may, to find absent tasks)."""
        values = {"lr": float(self.scheduler.get_last_lr()[0])}
        values |= {f"loss/{task}": loss.item() for task, loss in result.losses.items()}
        if result.losses:
            for name, value in self.surgery.statistics().scalars().items():
                if name in self.log.columns and name not in values and math.isfinite(value):  # losses before balancing
                    values[name] = value / result.gradient_scale if name.startswith("norm/") else value
        if self.balancer is not None:
            if isinstance(self.balancer, gs.UncertaintyWeighting):
                variances = zip(self.problem.tasks, self.balancer.variances.tolist(), strict=True)
                values |= {f"variance/{task}": variance for task, variance in variances}
            weights = zip(self.problem.tasks, self.balancer.weights.tolist(), strict=True)
            values |= {f"balance/{task}": weight for task, weight in weights}
        return values

    def save(self) -> None:
        """Write checkpoints/last; the log is on disk up to the position it records."""
        save_state(self.folder.last, {
            "model": self.problem.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "scaler": self.precision.scaler.state_dict(),
            "surgery": self.surgery.state_dict(), "balancer": None if self.balancer is None else self.balancer.state_dict(),
            "stopping": self.stopping.state_dict(), "random": random_state(), "log_position": self.log.position(),
            "epoch": self.epoch, "position": self.position, "step": self.step,
        })  # fmt: skip

    def _restore(self) -> int:
        """Load checkpoints/last into everything; returns how many bytes of the log belong to it."""
        state = load_state(self.folder.last)
        try:
            self.problem.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.precision.scaler.load_state_dict(state["scaler"])
            self.surgery.load_state_dict(state["surgery"])
            if self.balancer is not None:
                self.balancer.load_state_dict(state["balancer"])
            self.stopping.load_state_dict(state["stopping"])
            self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
            restore_random_state(state["random"])
            log_position: int = state["log_position"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{self.folder.last}: the checkpoint does not fit this run ({reason}); it was written by another version "
                "or for other data. Start a new run in another --out."
            ) from error
        return log_position


def _sized(data: Dataset[Any]) -> Any:
    if not hasattr(data, "__len__"):
        raise TypeError(f"train_data: expected a data set with a length, found {type(data).__name__}")
    return data
