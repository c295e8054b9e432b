"""Train an LSTM on the sentiment and the topic of texts, with gradient surgery where trunk and heads meet.

Generated reviews, less than a minute on two CPU cores; a folder with train.csv and val.csv (or .tsv) whose columns are text,
sentiment and topic, an empty cell where a label is missing; and a data set for each task, which needs surgery on the parameters:

    python examples/text/train.py --out runs/first
    python examples/text/train.py --data PATH --balancer uncertainty --out runs/second
    python examples/text/train.py --sentiment PATH --topic PATH --form parameters --out runs/third
    python examples/text/train.py --out runs/second --resume
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import harness.main
from harness.arguments import add_arguments, add_counts, at_least, generated_or_path, share

from text.data import COUNTS, TASKS
from text.data.sources import HELD_OUT
from text.problem import TextProblem


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and the texts' own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument("--data", type=generated_or_path, metavar="generated|PATH",
                     help="reviews made on the fly (the default), a folder with train and val as .csv or .tsv, or one such file, "
                     f"of which {100 * HELD_OUT:.0f} %% are held out")  # fmt: skip
    own.add_argument("--train-csv", "--train_csv", type=Path, metavar="FILE", help="training texts, in place of --data")
    own.add_argument("--val-csv", "--val_csv", type=Path, metavar="FILE", help="validation texts, in place of --data")
    for task in TASKS:
        own.add_argument(f"--{task}", type=Path, metavar="PATH",
                         help=f"a data set for {task} alone (columns text and {task}), in place of --data")  # fmt: skip
    own.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add_counts(own, "texts of each data set", COUNTS)
    own.add_argument("--vocabulary", type=at_least(1), default=10_000, help="at most so many words, the most frequent ones")
    own.add_argument("--min-count", type=at_least(1), default=2, help="a word of the vocabulary occurs so often in training")
    own.add_argument("--max-words", type=at_least(1), default=64, help="texts are cut after so many words")
    own.add_argument("--embedding", type=at_least(1), default=32, help="length of a word's vector")
    own.add_argument("--width", type=at_least(1), default=32, help="length of the LSTM's state, in each direction")
    own.add_argument("--dropout", type=share, default=0.2, help="share of embeddings and of the representation")
    add_arguments(parser, epochs=10, batch_size=32, lr=5e-3)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status."""
    return harness.main.main(build_parser(), TextProblem, argv)


if __name__ == "__main__":
    sys.exit(main())
