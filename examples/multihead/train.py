"""Train a multi-head Vision Transformer that reads company, model, diameter and length off the picture of a product.

Generated products and PCGrad, a few minutes on two CPU cores; your own, listed in JSON; and what to do after a crash:

    python examples/multihead/train.py --out runs/first
    python examples/multihead/train.py --train-json train.json --val-json val.json --balancer uncertainty --out runs/second
    python examples/multihead/train.py --out runs/second --resume

A record of the JSON's list is {"image": path, "company": …, "model": …, "diameter": …, "length": …}; what is null, '' or -1 is not
known, and counts for nothing. export.py then makes one file of a run, and predict.py answers from it.

"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import harness.main
from harness.arguments import add_arguments, add_counts, at_least, share
from harness.errors import RunError

from multihead.data import TASKS
from multihead.model import BACKBONES, STEMS
from multihead.old_flags import DOCUMENT, translate
from multihead.problem import BINS, PRODUCTS, ProductProblem


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and the products' own."""
    parser = argparse.ArgumentParser(description=__doc__ + DOCUMENT, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument("--train-json", "--train_json", type=Path, help="records to train on (default: generated products)")
    own.add_argument("--val-json", "--val_json", type=Path, help="records to measure on")
    own.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    own.add_argument("--numbers", choices=("regression", "binned"), default="regression",
                     help="regression: standardised numbers; binned: quantile bins, answered by their weighted mean")  # fmt: skip
    own.add_argument("--bins", type=at_least(2), help=f"with --numbers binned, at most so many (default: {BINS})")
    add_counts(own, "records", PRODUCTS)
    own.add_argument("--augment", action="store_true", help="move, turn and relight pictures: for long runs")
    own.add_argument("--backbone", choices=BACKBONES, default="small", help="small: what the next options describe")
    own.add_argument("--pretrained", action="store_true", help="vit_b_16: start from ImageNet weights (downloaded once)")
    own.add_argument("--size", type=at_least(8), help="the pictures' side in pixels (default: 64; vit_b_16: 224)")
    own.add_argument("--patch", type=at_least(1), help="pixels a token and direction (default: 16)")
    own.add_argument("--width", type=at_least(1), help="of tokens and representation (default: 192)")
    own.add_argument("--depth", type=at_least(1), help="transformer blocks (default: 4)")
    own.add_argument("--attention-heads", type=at_least(1), help="in each block (default: 3)")
    own.add_argument("--stem", choices=STEMS, help="how pixels become tokens (default: convolutions)")
    own.add_argument("--dropout", type=share, default=0.0, help="in the transformer's blocks")
    add_arguments(parser, batch_size=32, clip_norm=1.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status."""
    try:
        translated = translate(sys.argv[1:] if argv is None else argv)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return harness.main.main(build_parser(), ProductProblem, translated)


if __name__ == "__main__":
    sys.exit(main())
