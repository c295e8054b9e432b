"""Train a byte-level language model to predict several bytes ahead, with gradient surgery between its heads.

Generated text and PCGrad, a few minutes on two CPU cores; any text of your own; and after Ctrl-C, SIGTERM or a crash:

    python examples/multitoken/train.py --out runs/first
    python examples/multitoken/train.py --data PATH --tokens 8 --method sum --out runs/second
    python examples/multitoken/train.py --out runs/second --resume
    python examples/multitoken/generate.py runs/second --prompt "First "
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import harness.main
from harness.arguments import add_arguments, at_least, generated_or_path

from multitoken.problem import MultiTokenProblem


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and this one's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument(
        "--data", type=generated_or_path, default="generated", metavar="generated|PATH", help="text made from the seed, or any file"
    )
    own.add_argument("--tokens", type=at_least(1), default=4, help="how many bytes to predict: one head and one task each")
    own.add_argument("--context", type=at_least(2), default=128, help="bytes of a window")
    own.add_argument("--train-count", type=at_least(1), help="random windows an epoch (default: as many as tile the text)")
    own.add_argument("--val-count", type=at_least(1), help="use so many validation windows (default: all there are)")
    own.add_argument("--width", type=at_least(1), default=128, help="of the shared representation")
    own.add_argument("--layers", type=at_least(1), default=3, help="transformer layers of the trunk; each head has one more")
    own.add_argument("--heads", type=at_least(1), default=4, help="attention heads of every layer")
    add_arguments(parser, form="detach", epochs=2, batch_size=16, lr=2e-3, clip_norm=1.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status."""
    return harness.main.main(build_parser(), MultiTokenProblem, argv)


if __name__ == "__main__":
    sys.exit(main())
