"""The command line that every trainer speaks, and how a resumed run finds its arguments again."""

import argparse
import ast
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gradsurgery as gs
from harness.errors import RunError
from harness.precision import AMP
from harness.run_folder import RunFolder, read_json
from harness.schedule import SCHEDULES

BALANCERS = ("none", "uncertainty", *sorted(gs.balancers()))  # "uncertainty" in full is "uw"
FORMS = ("split", "detach", "parameters")
FREE_ON_RESUME = {"out", "resume", "workers", "device"}  # these leave the numbers alone (device: up to rounding)


def at_least(minimum: float, kind: Callable[[str], float] = int) -> Callable[[str], Any]:
    """An argparse type: a number of `kind`, not below `minimum`."""

    def convert(text: str) -> float:
        value = kind(text)
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, found {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names the type in "invalid int value"
    return convert


def share(text: str) -> float:
    """An argparse type: a number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, found {text}")
    return value


def generated_or_path(text: str) -> str | Path:
    """An argparse type of data: "generated", or a path."""
    return text if text == "generated" else Path(text)


class _Repeatable(argparse.Action):
    """argparse's "append", but what the command line names replaces the default, which a resumed run takes from its first start."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:  # fmt: skip
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if given is self.default else given), values])


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options that all trainers share; `defaults` replaces their defaults by name."""
    surgery = parser.add_argument_group("gradient surgery")
    surgery.add_argument("--method", choices=sorted(gs.methods()), default="pcgrad", help="how task gradients become one")
    surgery.add_argument("--method-option", action=_Repeatable, type=_option, default=[], metavar="NAME=VALUE",
                         help="an option of the method, such as c=0.4; may be repeated")  # fmt: skip
    surgery.add_argument("--form", choices=FORMS, default="split",
                         help="surgery at the representation (split: one backward through all heads; detach: one head in memory "
                         "at a time) or in the space of the trunk's parameters, as in the PCGrad paper")  # fmt: skip
    surgery.add_argument("--balancer", choices=BALANCERS, default="none", help="how task losses are weighted")
    surgery.add_argument("--balancer-option", action=_Repeatable, type=_option, default=[], metavar="NAME=VALUE",
                         help="an option of the balancer, such as temp=1.0; may be repeated")  # fmt: skip
    surgery.add_argument("--balancer-lr", type=at_least(0, float), default=0.01, help="learning rate of the loss weights")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=at_least(1), default=10)
    training.add_argument("--batch-size", type=at_least(1), default=8)
    training.add_argument("--lr", type=at_least(0, float), default=1e-3, help="AdamW learning rate of the trunk")
    training.add_argument("--head-lr", type=at_least(0, float), help="learning rate of the heads (default: --lr)")
    training.add_argument("--weight-decay", type=at_least(0, float), default=1e-2)
    training.add_argument("--clip-norm", type=at_least(0, float), default=0.0, help="clip the gradient's norm; 0: do not")
    training.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    training.add_argument("--warmup-steps", type=at_least(0), default=10, help="linear learning-rate warm-up")
    training.add_argument("--early-stop", type=at_least(0), default=0, metavar="PATIENCE",
                          help="stop after so many epochs without a better score; 0: never")  # fmt: skip
    machine = parser.add_argument_group("machine and run")
    machine.add_argument("--seed", type=at_least(0), default=0)
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    machine.add_argument("--amp", choices=tuple(AMP), default="off", help="mixed precision")
    machine.add_argument("--double", action="store_true", help="compute in float64, to compare runs whose sums differ in order")
    machine.add_argument("--compile", action="store_true", help="torch.compile the trunk and each head")
    machine.add_argument("--deterministic", action="store_true", help="raise on any operation that is not reproducible")
    machine.add_argument("--workers", type=at_least(0), default=0, help="data loading processes")
    machine.add_argument("--log-every", type=at_least(1), default=1, metavar="STEPS")
    machine.add_argument("--out", type=Path, required=True, help="run folder to create")
    machine.add_argument("--resume", action="store_true",
                         help="continue the run in --out; its arguments are taken from its config.json")  # fmt: skip
    parser.set_defaults(**defaults)


def add_counts(group: argparse._ArgumentGroup, samples: str, generated: Mapping[str, int]) -> None:
    """Add --train-count and --val-count of `samples`, such as "images"; `generated` by split are the defaults without data."""
    for split, words in (("train", "training"), ("val", "validation")):
        default = f"(default: {generated[split]} generated, or all there are)"
        group.add_argument(f"--{split}-count", type=at_least(1), help=f"use so many {words} {samples} {default}")


def open_run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, RunFolder]:
    """Parse the command line and check the run folder; nothing is written yet.

    With --resume, what the command line leaves out comes from the run's config.json, and what it repeats has to agree.
    """
    arguments = parser.parse_args(argv)
    folder = RunFolder(arguments.out, resume=arguments.resume)
    if not arguments.resume:
        return arguments, folder
    saved = saved_arguments(folder)
    parser.set_defaults(**{name: value for name, value in saved.items() if name not in FREE_ON_RESUME})
    repeated = parser.parse_args(argv)
    changed = [
        f"--{name.replace('_', '-')} was {value!r}, now {getattr(repeated, name)!r}"
        for name, value in saved.items()
        if name not in FREE_ON_RESUME and portable(getattr(repeated, name)) != value
    ]
    if changed:
        raise RunError(f"--resume: {'; '.join(changed)}. Leave them out, or start a new run in another --out.")
    return repeated, folder


def saved_arguments(folder: RunFolder) -> dict[str, Any]:
    """The arguments in a run's config.json; RunError where there are none."""
    saved = read_json(folder.config).get("arguments")
    if not isinstance(saved, dict):
        raise RunError(f"{folder.config}: expected an object under 'arguments'; start the run in another folder.")
    return saved


def portable(value: Any) -> Any:
    """`value` as JSON gives it back, paths absolute: a run may be resumed from another folder than it was started in."""
    if isinstance(value, (list, tuple)):
        return [portable(entry) for entry in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """What config.json holds: the arguments, and what ran them."""
    return {
        "arguments": {name: portable(value) for name, value in vars(arguments).items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform()},
        "build_info": gs.build_info(),
    }
