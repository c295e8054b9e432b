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

import harness.main
from harness.arguments import add_arguments, add_counts, at_least, generated_or_path

from nyuv2.data.sample import CLASS_NAMES
from nyuv2.models.builder import BACKBONES, DECODERS, SEGNET
from nyuv2.objectives import OBJECTIVES
from nyuv2.problem import ROOMS, NYUv2Problem


def task_weight(text: str) -> tuple[str, float]:
    """An argparse type: TASK=VALUE with a number ≥ 0."""
    task, _, value = text.partition("=")
    try:
        return task, at_least(0, float)(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected TASK=VALUE, found {text!r}") from error


def build_parser() -> argparse.ArgumentParser:
    """The command line: what all trainers share, and NYUv2's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("data and model")
    own.add_argument(
        "--data", type=generated_or_path, default="generated", metavar="generated|PATH", help="rooms made on the fly, or a data set"
    )
    own.add_argument("--tasks", nargs="+", choices=tuple(OBJECTIVES), default=["segmentation", "depth"])
    own.add_argument("--classes", type=int, choices=tuple(CLASS_NAMES), help="segmentation classes (default: the data's own)")
    own.add_argument("--size", type=at_least(32), nargs=2, default=[120, 160], metavar=("HEIGHT", "WIDTH"))
    add_counts(own, "samples", ROOMS)
    own.add_argument("--augment", action="store_true", help="random crops, flips and colors: for long runs")
    own.add_argument("--backbone", choices=(*BACKBONES, SEGNET), default="mobilenetv2", help="the encoder that all tasks share")
    own.add_argument(
        "--decoder",
        choices=tuple(DECODERS),
        help="refinenet: one shared map (the default of mobilenetv2); fpn: a shared pyramid (of the other backbones); queries: fpn "
        "and a transformer decoder a task; mtan: attention a task (of segnet, alone)",
    )
    own.add_argument("--channels", type=at_least(1), help="width of the shared representation (default: 128; segnet: 64)")
    own.add_argument("--pretrained", action="store_true", help="start from ImageNet weights (downloaded once)")
    own.add_argument("--freeze-stages", type=at_least(0), default=0, metavar="N", help="never train the encoder's first N stages")
    own.add_argument("--freeze-encoder-epochs", type=at_least(0), default=0, help="train only decoder and heads at first")
    own.add_argument("--depth-loss", choices=tuple(OBJECTIVES["depth"]), default="l1")
    own.add_argument("--normal-loss", choices=tuple(OBJECTIVES["normal"]), default="cosine")
    own.add_argument("--loss-weights", type=task_weight, nargs="+", default=[], metavar="TASK=VALUE",
                     help="fixed factors on losses, before any --balancer")  # fmt: skip
    add_arguments(parser, lr=3e-3, clip_norm=1.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume; returns the exit status."""
    return harness.main.main(build_parser(), NYUv2Problem, argv)


if __name__ == "__main__":
    sys.exit(main())
