"""Surgery in the space of the trunk's parameters: a training step of ResNet-18, this library's ways and TorchJD's.

Each way is a line in ``CONTENDERS``. Each is checked against PCGrad in float64 over the gradients of T separate backward passes,
and then timed beside the plain step, and beside the floor of every exact way: one forward pass and T plain backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from oracle import pcgrad
from providers import PROVIDERS
from providers.provider import seed_all
from results import Row
from step import Batch
from timing import Call, Effort, Times
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workers import take_turns, workers

import gradsurgery as gs
from gradsurgery.ops.reference import random_order

CLASSES = 10
WIDTH = 512  # of the representation
EVERY = 10
TURN = 3  # steps that a contender takes one after another, at least; one call before them is not timed
# All of |gradient - oracle| / |oracle|. The passes that are compared add in other orders, in float32.
EXACT = 1e-4
# A Gram matrix that is summed over all parameters in float32 is off by 4e-3 at T = 6. That is no wrong algorithm; the row tells how
# far off it is. A projection that is left out or out of turn shows at 0.1.
ROUNDED = 1e-2


def residual_trunk() -> nn.Sequential:
    """ResNet-18 to its pooled features: [B, 3, H, W] -> [B, 512]. The last stage is the third from the end."""
    from torchvision.models import resnet18  # type: ignore[import-untyped]  # it has no stubs

    return nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())


def small_trunk() -> nn.Sequential:
    """Two stages of one convolution each, of the same form: [B, 3, H, W] -> [B, 512]."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(stage(3, 16), stage(16, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Experiment:
    """One model in training mode and one batch. Nothing updates the model, so that every step sees the same gradients.

    The tasks classify the same images. The heads' first weights have a part in common, with its sign turned in every second head,
    so that tasks conflict.

    Args:
        device: where to run.
        batch: how many images, how large.
        tasks: T.
        build: the trunk.
    """

    def __init__(self, device: torch.device, batch: Batch, tasks: int, build: Callable[[], nn.Sequential] = residual_trunk) -> None:
        torch.manual_seed(0)
        B, size = batch.count, batch.size
        self.point = {"tasks": tasks, "batch": B, "size": size}
        self.trunk = build().to(device)
        self.heads = nn.ModuleList([nn.Linear(WIDTH, CLASSES) for _ in range(tasks)]).to(device)
        common = torch.randn(CLASSES, WIDTH) / WIDTH**0.5
        with torch.no_grad():
            for t, head in enumerate(self.heads):
                head.weight += (-1) ** t * common.to(device)
        self.images = torch.randn(B, 3, size, size).to(device)
        self.labels = [torch.randint(CLASSES, (B,)).to(device)] * tasks

    @property
    def last_stage(self) -> nn.Module:
        return self.trunk[-3]

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        """The features [B, 512], and the tasks' losses [T]."""
        features = self.trunk(self.images)
        return features, [cross_entropy(head(features), y) for head, y in zip(self.heads, self.labels, strict=True)]

    def release(self) -> None:
        self.trunk.zero_grad(set_to_none=True)
        self.heads.zero_grad(set_to_none=True)

    def gradient(self, module: nn.Module) -> Tensor:
        """The ``.grad`` of all of a module's parameters, copied. [N]"""
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def task_gradients(self, module: nn.Module) -> Tensor:
        """The module's gradient in T separate backward passes. [T, N]"""
        rows = []
        for t in range(len(self.heads)):
            self.release()
            self.losses()[1][t].backward()
            rows.append(self.gradient(module))
        self.release()
        return torch.stack(rows)


Backward = Callable[[Tensor, list[Tensor]], None]


@dataclass(frozen=True)
class Contender:
    """One way to the gradients of a training step.

    Attributes:
        title: in tables.
        prepare: what is done with the features and the losses of each step, to leave the gradients in ``.grad``.
        orders: T -> the orders in which the first step projects, after ``seed_all(0)``; None for the sum without surgery.
        on_last_stage: the weights are those of the last stage's gradients.
        steps: of one call; what is told of it is a step's average.
        tolerance: how far the gradient may be off, relative to its length.
    """

    title: str
    prepare: Callable[[Experiment], Backward]
    orders: Callable[[int], list[list[int]]] | None = None
    on_last_stage: bool = False
    steps: int = 1
    tolerance: float = EXACT

    def call(self, experiment: Experiment) -> Call:
        """Whole training steps: the gradients of the last one remain."""
        backward = self.prepare(experiment)

        def run() -> None:
            for _ in range(self.steps):
                experiment.release()
                backward(*experiment.losses())

        return run


def _plain(experiment: Experiment) -> Backward:
    return lambda features, losses: torch.stack(losses).sum().backward()


def _floor(experiment: Experiment) -> Backward:
    def backward(features: Tensor, losses: list[Tensor]) -> None:
        for t, loss in enumerate(losses):
            loss.backward(retain_graph=t < len(losses) - 1)

    return backward


def _ours(title: str, on_last_stage: bool = False, every: int = 1, **options: Any) -> Contender:
    def prepare(experiment: Experiment) -> Backward:
        surgery = gs.GradientAggregator("pcgrad", tasks=len(experiment.heads), every=every, seed=0)
        given = {**options, "gram_on": experiment.last_stage} if on_last_stage else options
        return lambda features, losses: surgery.backward(losses, shared=experiment.trunk, **given)

    def orders(tasks: int) -> list[list[int]]:
        found: list[list[int]] = random_order(torch.tensor([0, 0]), tasks).tolist()  # of (seed, step)
        return found

    return Contender(title, prepare, orders, on_last_stage, steps=every)


def _torchjd(title: str, chunk: int | None, optimise: bool) -> Contender:
    def prepare(experiment: Experiment) -> Backward:
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        aggregator, shared = PCGrad(), list(experiment.trunk.parameters())

        def backward(features: Tensor, losses: list[Tensor]) -> None:
            mtl_backward(losses, features, parallel_chunk_size=chunk)
            jac_to_grad(shared, aggregator, optimize_gramian_computation=optimise)

        return backward

    return Contender(title, prepare, PROVIDERS["torchjd"].orders, tolerance=EXACT if optimise else ROUNDED)


CONTENDERS: dict[str, Contender] = {
    "plain": Contender("the sum, one backward pass", _plain),
    "floor": Contender("the sum, T backward passes", _floor),
    "full": _ours("gradsurgery"),
    "low": _ours('`memory="low"`', memory="low"),
    "batched": _ours('`passes="batched"`', passes="batched"),
    "gram_on": _ours("`gram_on=` the last stage", on_last_stage=True),
    "every": _ours(f"`every={EVERY}`", every=EVERY),
    "torchjd": _torchjd("TorchJD, default", None, optimise=False),
    "torchjd_gram": _torchjd("TorchJD, optimised Gram", None, optimise=True),
    "torchjd_sequential": _torchjd("TorchJD, sequential", 1, optimise=False),
    "torchjd_sequential_gram": _torchjd("TorchJD, sequential, optimised Gram", 1, optimise=True),
}
RIVALS = tuple(name for name in CONTENDERS if name.startswith("torchjd"))


def entered(tasks: int) -> list[str]:
    """Who is measured: with one task there is nothing to choose, and surgery is to cost nothing."""
    return list(CONTENDERS) if tasks > 1 else ["plain", "full"]


class Oracle:
    """What the trunk's gradient [N] must be, from T separate backward passes; found once for all who project in the same order.

    Raises:
        AssertionError: no two tasks conflict, so that the sum without surgery would pass.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.trunk = experiment.task_gradients(experiment.trunk)
        self.stage = experiment.task_gradients(experiment.last_stage)
        self.heads = experiment.task_gradients(experiment.heads).flatten().double()  # each pass reaches one head
        self.conflicts = float((gs.gram(self.trunk) < 0).sum()) / max(len(self.trunk) * (len(self.trunk) - 1), 1)
        if len(self.trunk) > 1 and not self.conflicts:
            raise AssertionError(f"{len(self.trunk)} tasks: no two conflict, and nothing would be checked.")
        self._known: dict[str, Tensor] = {}

    def gradient(self, orders: Sequence[Sequence[int]] | None, on_last_stage: bool) -> Tensor:
        """[N] float64"""
        key = f"{orders} {on_last_stage}"
        if key not in self._known:
            self._known[key] = self._gradient(orders, on_last_stage)
        return self._known[key]

    def _gradient(self, orders: Sequence[Sequence[int]] | None, on_last_stage: bool) -> Tensor:
        if orders is None:
            return self.trunk.double().sum(0)
        if not on_last_stage:
            return pcgrad(self.trunk, orders)
        rows = self.stage.double()
        weights = torch.linalg.solve(rows @ rows.T, rows @ pcgrad(self.stage, orders))  # of the combination that the stage gets
        return weights @ self.trunk.double()


def check(name: str, contender: Contender, call: Call, experiment: Experiment, oracle: Oracle) -> float:
    """The relative error of the trunk's gradient after a contender's first call.

    Raises:
        AssertionError: the trunk's or the heads' is wrong; nothing of this contender may be timed.
    """
    orders = None
    if contender.orders is not None:
        seed_all(0)
        orders = contender.orders(len(experiment.heads))
    seed_all(0)
    call()
    expected = {"trunk": oracle.gradient(orders, contender.on_last_stage), "heads": oracle.heads}
    errors = {}
    for part, module in (("trunk", experiment.trunk), ("heads", experiment.heads)):
        found = experiment.gradient(module).double()
        errors[part] = float((found - expected[part]).norm() / expected[part].norm())
        if not errors[part] <= contender.tolerance:
            raise AssertionError(
                f"{name}: the gradient of the {part} is off by {errors[part]:.1e} of the float64 oracle at T = "
                f"{len(experiment.heads)}, where {contender.tolerance:.0e} is allowed."
            )
    return errors["trunk"]


def parameter_rows(
    tasks: Sequence[int],
    effort: Effort,
    device: torch.device,
    batch: Batch,
    build: Callable[[], nn.Sequential] = residual_trunk,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """One row for each T and contender, with its error against the oracle; the times of a T come from the same rounds.

    Each contender is timed in a process of its own, as a training run is: where all share one, the largest of them keeps memory
    from going back to the system, and those that ask for much each step pay nothing for it. The budget is of each T, whose
    contenders share it: where there are two, which are to be told apart by a hundredth, there are more rounds than where there
    are ten.

    Raises:
        AssertionError: a contender's gradient is wrong.
    """
    rows: list[Row] = []
    for T in tasks:
        experiment = Experiment(device, batch, T, build)
        calls = {name: CONTENDERS[name].call(experiment) for name in entered(T)}
        with torch.backends.cudnn.flags(allow_tf32=False):  # whose rounding hides what is checked; the times are with it
            oracle = Oracle(experiment)
            errors = {name: check(name, CONTENDERS[name], call, experiment, oracle) for name, call in calls.items()}
        point = {"kind": "parameter step", **experiment.point, "conflicts": oracle.conflicts, "own_process": True}
        del oracle, experiment, calls  # several times the model
        hire = partial(workers, {name: partial(_alone, name, device, batch, T, build) for name in entered(T)})
        times = take_turns(hire, {name: -(-TURN // CONTENDERS[name].steps) for name in entered(T)}, effort)
        rows += [{**point, "form": name, **asdict(_step(name, t)), "error": errors[name]} for name, t in times.items()]
        say(f"T={T}: " + ", ".join(f"{row['form']} {row['p50'] * 1e3:.0f} ms" for row in rows if row["tasks"] == T))
    return rows


def _alone(name: str, device: torch.device, batch: Batch, tasks: int, build: Callable[[], nn.Sequential]) -> Call:
    """A contender's call in a process of its own."""
    call = CONTENDERS[name].call(Experiment(device, batch, tasks, build))

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _step(name: str, call: Times) -> Times:
    """A step's times of a call's."""
    n = CONTENDERS[name].steps
    return Times(call.p20 / n, call.p50 / n, call.p80 / n, call.samples)
