"""What surgery over many ranks would cost, by the model of ``gradsurgery.distributed.cost``.

``python benchmarks/communication.py`` draws docs/communication.png and prints the table that docs/distributed.md shows; with
``--check FILE`` it only says by its exit status whether FILE shows that table. Bytes and messages are counted against real ranks in
the tests; seconds follow from links that are assumed, and nothing overlaps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gradsurgery.distributed.cost import Algorithm, Link, Mode, traffic

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "communication.png"
WORLDS = [2**k for k in range(1, 13)]
SHOWN = (2, 8, 64, 512, 4096)
LINKS = {"25 Gb/s Ethernet": Link(25e9 / 8, 30e-6), "400 Gb/s InfiniBand": Link(400e9 / 8, 5e-6)}
"""Nominal bandwidths of one port a rank; latencies are round guesses of a hop with software. Nothing of it was measured."""
SHARED, HEADS, TASKS = 25_600_000, 2_000_000, 3  # about ResNet-50, and heads
COLORS = dict(zip(get_args(Mode), ("#7a7a7a", "#1b6ca8", "#b0b0b0", "#d1495b", "#edae49", "#66a182"), strict=True))


def seconds(mode: Mode, world: int, link: Link, algorithm: Algorithm) -> float:
    """Of one step's messages, one after the other."""
    return traffic(mode, TASKS, world, SHARED, HEADS, algorithm=algorithm).seconds(link)


def table() -> str:
    """Megabytes and messages a rank sends in a step."""
    lines = ["| mode | " + " | ".join(f"{w} ranks" for w in SHOWN) + " | messages |", "| --- |" + " ---: |" * (len(SHOWN) + 1)]
    for mode in get_args(Mode):
        found = [traffic(mode, TASKS, world, SHARED, HEADS) for world in SHOWN]
        lines.append(f"| {mode} | " + " | ".join(f"{t.bytes / 1e6:.1f} MB" for t in found) + f" | {found[0].messages} |")
    return "\n".join(lines)


def draw(path: Path = PICTURE) -> None:
    """Seconds a step against the number of ranks, for two links: trees drawn through, rings dotted."""
    figure, axes = plt.subplots(1, len(LINKS), figsize=(10, 4), layout="constrained", sharey=True)
    for axis, (name, link) in zip(axes, LINKS.items(), strict=True):
        for mode in get_args(Mode):
            if mode == "local":  # as data parallel
                continue
            for algorithm, line in (("tree", "--" if mode == "representation" else "-"), ("ring", ":")):
                times = [seconds(mode, world, link, algorithm) for world in WORLDS]
                width = 3.5 if mode == "data parallel" else 1.5
                axis.plot(WORLDS, times, line, color=COLORS[mode], linewidth=width, label=mode if algorithm == "tree" else None)
        axis.set(yscale="log", xlabel="ranks", title=name)
        axis.set_xscale("log", base=2)
    axes[0].set_ylabel("seconds of messages a step (model)")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    sizes = f"N = {SHARED / 1e6:.1f}e6 shared and {HEADS / 1e6:.0f}e6 other parameters, float32, T = {TASKS}"
    figure.suptitle(f"{sizes}; solid: trees, dotted: rings")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FILE", help="only look whether FILE shows the table")
    arguments = parser.parse_args(argv)
    if arguments.check is not None:
        if table() in arguments.check.read_text():
            return 0
        print(f"{arguments.check}: expected this table, found another or none:\n{table()}", file=sys.stderr)
        return 1
    draw()
    print(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
