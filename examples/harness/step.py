"""One optimizer step with gradient surgery, in each of its three forms."""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers import Balancer
from harness.errors import RunError
from harness.precision import Precision
from harness.problem import Problem
from harness.processes import average, world
from harness.replicas import Replicas


def make_surgery(problem: Problem, arguments: argparse.Namespace) -> gs.GradientAggregator:
    """The aggregator that --method and --method-option name."""
    try:
        diagnosed = "diagnostics" in gs.methods()[arguments.method].options
        known: dict[str, Any] = {"diagnostics": True} if diagnosed else {}  # the log shows K
        if world() > 1:
            known["process_group"] = torch.distributed.group.WORLD
        surgery = gs.GradientAggregator(arguments.method, tasks=problem.tasks, **known | dict(arguments.method_option))
        # Some methods want more tasks than there are; they say so here, and not in the first step.
        gs.aggregate(torch.eye(len(problem.tasks)), surgery.method, losses=[1.0] * len(problem.tasks))
        return surgery
    except (TypeError, ValueError) as error:
        raise RunError(f"--method {arguments.method}: {error}") from error


def make_balancer(problem: Problem, arguments: argparse.Namespace, surgery: gs.GradientAggregator) -> Balancer | None:
    """The loss balancer that --balancer and --balancer-option name."""
    if arguments.balancer == "none":
        return None
    spec = gs.balancers()["uw" if arguments.balancer == "uncertainty" else arguments.balancer]
    known = {"kinds": problem.kinds, "aggregator": surgery}
    of_its_own = world() > 1 and "aggregator" not in spec.options  # the aggregator brings its process group along
    group = torch.distributed.group.WORLD if of_its_own else None
    options = {name: value for name, value in known.items() if name in spec.options}
    try:
        return spec.build(problem.tasks, process_group=group, **{**options, **dict(arguments.balancer_option)})
    except (TypeError, ValueError) as error:
        raise RunError(f"--balancer {arguments.balancer}: {error}") from error


@dataclass(frozen=True)
class StepResult:
    """The tasks' losses before balancing, absent tasks left out, and the factor on the gradients that surgery saw."""

    losses: dict[str, Tensor]
    gradient_scale: float


class SurgicalStep:
    """losses → balance → surgery on the tasks' gradients → clip → update; FAMO then sees the losses again.

    `form` "split" runs one backward through all heads, with surgery at the representation; "detach" one backward for each task, so
    that one head's activations are alive at a time (all heads' are with a balancer whose weights need all losses); "parameters"
    one backward for each task through head and trunk, with surgery on the gradients of the trunk's parameters.
    """

    def __init__(self, problem: Problem, surgery: gs.GradientAggregator, balancer: Balancer | None,
                 optimizer: torch.optim.Optimizer, precision: Precision, *, form: str, clip_norm: float) -> None:  # fmt: skip
        self.problem, self.surgery, self.balancer = problem, surgery, balancer
        self.replicas = Replicas(problem, averaged=form == "parameters")
        self.optimizer, self.precision = optimizer, precision
        self.form, self.clip_norm = form, clip_norm
        self.separable = any(
            type(balancer) is spec.cls and "separable" in spec.properties for spec in gs.balancers().values()
        )  # fmt: skip

    def __call__(self, batch: Any) -> StepResult:
        """Update the parameters once; a batch in which every task is absent changes nothing."""
        scaler = self.precision.scaler
        scale = scaler.get_scale()
        self.optimizer.zero_grad(set_to_none=True)
        backward = {"split": self._backward_split, "detach": self._backward_detached, "parameters": self._backward_parameters}
        losses = backward[self.form](batch)
        if losses:
            scaler.unscale_(self.optimizer)
            if self.clip_norm > 0:
                nn.utils.clip_grad_norm_(self.problem.model.parameters(), self.clip_norm)
            scaler.step(self.optimizer)
            scaler.update()
            if isinstance(self.balancer, gs.FAMO) and not self.balancer.update_on_next_call:
                with torch.no_grad():
                    self.balancer.update(self._losses(batch))
        return StepResult(losses, 1.0 if self.form == "parameters" else scale)

    def _backward_split(self, batch: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        with self.precision.autocast():
            views = self.surgery.split(self.replicas.represent(batch))
            for task, view in zip(self.problem.tasks, views, strict=True):
                if (loss := self.replicas.loss(task, view, batch)) is not None:
                    losses[task] = loss
        told = _of_batch(losses)
        if losses:
            self.surgery.observe(told)
            total = torch.stack(list(losses.values())).sum() if self.balancer is None else self.balancer(losses)
            self.precision.scaler.scale(total).backward()
        return told

    def _backward_detached(self, batch: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        with self.precision.autocast():
            features = self.surgery.detach(self.replicas.represent(batch))
        for task in self.problem.tasks:
            with self.precision.autocast():
                loss = self.replicas.loss(task, features, batch)
            if loss is None:
                continue
            if self.balancer is None:
                losses[task] = self._propagate(task, loss)
            elif self.separable:
                self._propagate(task, self.balancer.weighted({task: loss})[task])
                losses[task] = loss.detach()
            else:
                losses[task] = loss
        if self.balancer is not None and not self.separable and losses:
            for task, term in self.balancer.weighted(losses).items():
                self._propagate(task, term)
        told = _of_batch(losses)
        if losses:
            self.surgery.observe(told)
            self.surgery.backward()
        else:
            self.surgery.reset()
        return told

    def _backward_parameters(self, batch: Any) -> dict[str, Tensor]:
        losses = self._losses(batch)
        if losses:
            terms = losses if self.balancer is None else self.balancer.weighted(losses)
            inputs = None
            if world() > 1:  # the same on every rank and in every step, whichever tasks are there
                learned = [] if self.balancer is None else self.balancer.parameters()
                inputs = [*self.problem.model.parameters(), *learned]
            self.surgery.backward(terms, shared=self.problem.model.trunk, inputs=inputs, scaler=self.precision.scaler)
        return _of_batch(losses)

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of all tasks on one representation, without surgery."""
        with self.precision.autocast():
            features = self.replicas.represent(batch)
            losses = {task: self.replicas.loss(task, features, batch) for task in self.problem.tasks}
        return {task: loss for task, loss in losses.items() if loss is not None}

    def _propagate(self, task: str, loss: Tensor) -> Tensor:
        """Backward through the head alone; returns the loss without its graph."""
        with self.surgery.task(task):
            self.precision.scaler.scale(loss).backward()
        return loss.detach()


def _of_batch(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of the whole batch, without their graphs."""
    if not losses:
        return {}
    return dict(zip(losses, average(torch.stack([loss.detach() for loss in losses.values()])).unbind(), strict=True))
