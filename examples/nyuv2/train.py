"""Train a multi-task network on NYUv2 or on generated rooms, with gradient surgery where trunk and heads meet.

Generated rooms and PCGrad, a few minutes on two CPU cores; NYUv2 itself; and what to do after Ctrl-C, SIGTERM or a crash:

    python examples/nyuv2/train.py --out runs/first
    python examples/nyuv2/train.py --data PATH --tasks segmentation depth normal --balancer gradnorm --out runs/second
    python examples/nyuv2/train.py --out runs/second --resume
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from harness.arguments import add_arguments, at_least, open_run
from harness.errors import RunError
from harness.reproducibility import seed_everything
from harness.training import Training
from rich.console import Console

from nyuv2.data.sample import CLASS_NAMES, DataError
from nyuv2.objectives import OBJECTIVES
from nyuv2.problem import ROOMS, NYUv2Problem
from nyuv2.report import write_report


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and NYUv2's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument("--data", default="generated", metavar="generated|PATH", help="rooms made on the fly, or a data set")
    own.add_argument("--tasks", nargs="+", choices=tuple(OBJECTIVES), default=["segmentation", "depth"])
    own.add_argument("--classes", type=int, choices=tuple(CLASS_NAMES), default=13, help="segmentation classes")
    own.add_argument("--size", type=at_least(32), nargs=2, default=[120, 160], metavar=("HEIGHT", "WIDTH"))
    own.add_argument(
        "--train-count", type=at_least(1), help=f"use so many training samples (default: {ROOMS['train']} rooms, or all there are)"
    )
    own.add_argument(
        "--val-count", type=at_least(1), help=f"use so many validation samples (default: {ROOMS['val']} rooms, or all there are)"
    )
    own.add_argument("--augment", action="store_true", help="random crops, flips and colors: for long runs")
    own.add_argument("--channels", type=at_least(1), default=128, help="width of the shared representation")
    own.add_argument("--pretrained", action="store_true", help="start from ImageNet weights (downloaded once)")
    own.add_argument("--freeze-encoder-epochs", type=at_least(0), default=0, help="train only decoder and heads at first")
    add_arguments(parser, lr=3e-3, clip_norm=1.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status: 0, 1 for an error that the user can correct, 128 + n after signal n."""
    console = Console()
    try:
        arguments, folder = open_run(build_parser(), argv)
        seed_everything(arguments.seed, deterministic=arguments.deterministic)
        console.print(f"Preparing {arguments.data} data and the floors to beat …")
        problem = NYUv2Problem(arguments)
        training = Training(problem, arguments, folder, console)
        console.print(
            f"{len(problem.train_data)} training and {len(problem.val_data)} validation samples, {' + '.join(problem.tasks)}, "
            f"{arguments.method}, {training.steps_per_epoch} steps an epoch on {training.device}; everything goes to {folder.path}."
        )
        signal = training.run()
        if signal is not None:
            console.print(f"Stopped by signal {signal} after step {training.step}; go on with --out {folder.path} --resume.")
            return 128 + signal
        write_report(problem, arguments, folder, console)
    except (RunError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # training answers Ctrl-C itself, with a checkpoint
        print("Interrupted outside training; what was written so far is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
