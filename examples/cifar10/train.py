"""Train a small network on CIFAR-10, or on drawings of its classes, with gradient surgery where trunk and heads meet.

Three tasks on one image: its class, whether that is a vehicle or an animal, and by which quarter the image was turned. The first
two agree; rotation conflicts with both in about half of the steps, since it has to see what they have to ignore: weakly at the
representation, more strongly in the space of the parameters. About a minute on two CPU cores, and three:

    python examples/cifar10/train.py --out runs/first
    python examples/cifar10/train.py --form parameters --out runs/parameters
    python examples/cifar10/train.py --data PATH/cifar-10-batches-py --augment --tasks fine coarse --out runs/second
    python examples/cifar10/train.py --out runs/second --resume
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import harness.main
from harness.arguments import add_arguments, add_counts, at_least, generated_or_path

from cifar10.data import COUNTS, TASKS
from cifar10.problem import CIFAR10Problem


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and CIFAR-10's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument("--data", type=generated_or_path, default="generated", metavar="generated|PATH",
                     help="drawings made on the fly, or the folder of the official Python version")  # fmt: skip
    own.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add_counts(own, "images", COUNTS)
    own.add_argument("--augment", action="store_true", help="random flips and shifts: for long runs")
    own.add_argument("--width", type=at_least(4), default=64, help="length of the shared representation")
    add_arguments(parser, epochs=10, batch_size=32, lr=3e-3)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status."""
    return harness.main.main(build_parser(), CIFAR10Problem, argv)


if __name__ == "__main__":
    sys.exit(main())
