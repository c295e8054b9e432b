"""What surgery adds to a training step on a GPU, in time and in memory: a large network under autocast, by this library's forms and
by TorchJD's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from device_clock import device_clock
from memory import measure_from_here
from oracle import pcgrad
from parameter_step import CONTENDERS, EXACT, RIVALS, WIDTH, Contender, Experiment, Oracle, check
from providers.provider import not_installed, seed_all
from results import Row
from step import Batch
from timing import Call, Effort, interleave
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from gradsurgery.ops.reference import random_order

FORMS = ("plain", "split", "full", *RIVALS)


@dataclass(frozen=True)
class StepPlan:
    """Which network, on what.

    Attributes:
        build: the trunk, [B, 3, H, W] -> [B, 512].
        tasks: T.
        batch: that is timed, under autocast in bfloat16.
        checked: that the forms are checked on first, in float32.
        effort: for each form.
    """

    build: Callable[[], nn.Sequential]
    tasks: int
    batch: Batch
    checked: Batch
    effort: Effort


def deep_trunk() -> nn.Sequential:
    """ResNet-50 to its pooled features, brought to the heads' width by a convolution: [B, 3, H, W] -> [B, 512]."""
    from torchvision.models import resnet50  # type: ignore[import-untyped]  # it has no stubs

    pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*list(resnet50().children())[:-2], nn.Conv2d(2048, WIDTH, 1, bias=False), pool, flatten)


class Steps(Experiment):
    """The experiment in parameter space, under autocast or not, and with surgery at the representation as one more form."""

    def __init__(
        self, device: torch.device, batch: Batch, tasks: int, build: Callable[[], nn.Sequential], autocast: bool = False
    ) -> None:
        super().__init__(device, batch, tasks, build)
        self.precision: Callable[[], AbstractContextManager[object]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if autocast else nullcontext
        )
        self.point |= {"precision": "bfloat16" if autocast else "float32"}

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        with self.precision():
            return super().losses()

    def calls(self) -> dict[str, Call]:
        """A step's forward and backward pass by form."""
        there = [form for form in FORMS if not_installed(form) is None]
        return {form: self._split() if form == "split" else CONTENDERS[form].call(self) for form in there}

    def _split(self) -> Call:
        surgery = gs.GradientAggregator("pcgrad", tasks=len(self.heads), seed=0)

        def run() -> None:
            self.release()
            with self.precision():
                views = surgery.split(self.trunk(self.images))
                losses = [cross_entropy(head(z), y) for head, z, y in zip(self.heads, views, self.labels, strict=True)]
                total = torch.stack(losses).sum()
            total.backward()

        return run

    def split_gradient(self) -> Tensor:
        """What the trunk's gradient [N] must be after the first split: surgery in float64 on the representation's T gradients."""
        self.release()
        features, losses = self.losses()
        rows = [torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses]  # T of [B * 512]
        orders = random_order(torch.tensor([0, 0]), len(rows)).tolist()  # of (seed, step)
        features.backward(pcgrad(torch.stack(rows), orders).to(features).view_as(features))
        return self.gradient(self.trunk).double()


def check_forms(steps: Steps) -> dict[str, float]:
    """The relative error of every form's first gradient of the trunk.

    Raises:
        AssertionError: one is wrong.
    """
    errors = {}
    with torch.backends.cudnn.flags(allow_tf32=False):
        oracle = Oracle(steps)
        for form, call in steps.calls().items():
            if form == "split":
                seed_all(0)
                expected = steps.split_gradient()
                call()
                errors[form] = float((steps.gradient(steps.trunk).double() - expected).norm() / expected.norm())
                if not errors[form] <= EXACT:
                    raise AssertionError(
                        f"split: the gradient of the trunk is off by {errors[form]:.1e}, where {EXACT:.0e} is allowed."
                    )
            else:
                contender: Contender = CONTENDERS[form]
                errors[form] = check(form, contender, call, steps, oracle)
    return errors


def device_step_rows(plan: StepPlan, device: torch.device, say: Callable[[str], None] = lambda line: None) -> list[Row]:
    """One row a form: its time, its peak memory above what is held between steps, and its error on the batch that is checked.

    A network that is not installed is left out. So is a rival that fails on the batch, with what it said: some do under autocast,
    or ask for more memory than there is.

    Raises:
        AssertionError: a form is wrong.
    """
    try:
        checked = Steps(device, plan.checked, plan.tasks, plan.build)
    except ModuleNotFoundError as error:  # torchvision has the network
        say(f"step: left out: {error}")
        return [{"kind": "left out", "provider": "step", "reason": str(error)}]
    errors = check_forms(checked)
    steps = Steps(device, plan.batch, plan.tasks, plan.build, autocast=True)
    calls = steps.calls()
    found = {form: not_installed(form) or _peak(form, calls[form], steps, device) for form in FORMS}
    peaks = {form: peak for form, peak in found.items() if isinstance(peak, int)}
    times = interleave({form: calls[form] for form in peaks}, plan.effort, device, device_clock(device, flushed=False))
    say("step: " + ", ".join(f"{form} {t.p50 * 1e3:.1f} ms, {peaks[form] / 1e6:.0f} MB" for form, t in times.items()))
    rows: list[Row] = [
        {"kind": "device step", "form": form, **steps.point, **asdict(t), "extra_bytes": peaks[form], "error": errors[form]}
        for form, t in times.items()
    ]
    for form in (form for form in FORMS if form not in peaks):
        say(f"step: {form} left out: {found[form]}")
        rows.append({"kind": "left out", **steps.point, "provider": form, "reason": found[form]})
    return rows


def _peak(form: str, call: Call, steps: Steps, device: torch.device) -> int | str:
    """Bytes of a step above what is held between steps; or what a rival says that fails."""
    try:
        call()  # workspaces, and what is kept between steps
        steps.release()
        extra = measure_from_here(device)
        call()
    except RuntimeError as error:
        if form not in RIVALS:
            raise
        return str(error).split("\n", 1)[0]
    return extra()
