"""What it costs to observe: a training step of ResNet-18 with three tasks, plain, and through ``split`` with a ``Monitor``.

``python benchmarks/observing.py`` prints the table; with ``--json`` it also writes benchmarks/results/observing/, from where
docs/monitor.md has it; with ``--check FILE`` it only says by its exit status whether FILE shows the table of the newest result.
Both steps are taken in turns, each leads every other round, and what is compared are the two of a round. About four minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from environment import Disturbance, describe, slug
from results import FOLDER, Results, Row
from step import TASKS, Batch, Experiment
from timing import host_clock, percentiles
from torch.nn.functional import mse_loss

import gradsurgery as gs

RESULTS = FOLDER / "observing"
READ_EVERY = 100
BATCH = Batch(16, 96)


class Observed(Experiment):
    """The experiment, whose split is observed: ``"sum"``, statistics of each step, into a run folder."""

    def __init__(self, device: torch.device, batch: Batch, folder: Path) -> None:
        super().__init__(device, batch, dense=False)
        self.surgery = gs.GradientAggregator("sum", tasks=TASKS)
        self.monitor = gs.Monitor(self.surgery, folder, read_every=READ_EVERY)
        self.recording_s = 0.0  # in the monitor's own calls
        hook = self.monitor._on_step
        self.monitor._handles[0].remove()
        self.surgery.register_statistics_hook(lambda step: self._timed(hook, step))

    def _timed(self, hook: Any, step: Any) -> None:
        start = time.perf_counter()
        hook(step)
        self.recording_s += time.perf_counter() - start

    def observed(self) -> None:
        views = self.surgery.split(self.trunk(self.images))
        losses = [mse_loss(head(z), y) for head, z, y in zip(self.heads, views, self.targets, strict=True)]
        torch.stack(self.surgery.observe(losses)).sum().backward()
        self._finish()

    def check(self) -> None:
        """Raises unless both steps give the parameters the same gradients, and the row says what the step was."""
        self.optimizer.zero_grad()
        steps = []
        finish, self._finish = self._finish, lambda: None  # type: ignore[method-assign]
        for step in (self.plain, self.observed):
            step()
            steps.append([p.grad.clone() for p in self.trunk.parameters() if p.grad is not None])
            self.optimizer.zero_grad()
        self._finish = finish  # type: ignore[method-assign]
        plain, observed = (torch.cat([g.flatten().double() for g in grads]) for grads in steps)
        error = float((plain - observed).norm() / plain.norm())
        if not error < 1e-4:
            raise AssertionError(f"expected the plain step's gradients, found some that differ by {error:.1e} of their length.")
        self.monitor.flush()
        expected = self.surgery.statistics().scalars()
        found = self.monitor.rows[-1].values
        if {name: found[name] for name in expected} != expected or "loss/0" not in expected:
            raise AssertionError(f"expected the row {expected}, found {found}.")


def measure(device: torch.device, batch: Batch, rounds: int) -> Row:
    """Both steps in turns. -> one row: seconds of each, the ratio over the rounds, and the monitor's own seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Observed(device, batch, Path(folder, "run"))
        experiment.check()
        sample = host_clock(device)
        for _ in range(3):
            sample(experiment.plain, 1)
            sample(experiment.observed, 1)
        experiment.recording_s, first = 0.0, experiment.surgery.statistics().step
        plain: list[float] = []
        observed: list[float] = []
        for r in range(rounds):
            pair = [(experiment.plain, plain), (experiment.observed, observed)]
            for call, taken in pair if r % 2 else pair[::-1]:
                taken.append(sample(call, 1))
        steps = experiment.surgery.statistics().step - first
        experiment.monitor.close()
        log = Path(folder, "run", "log.csv").read_text().splitlines()
        if len(log) != experiment.surgery.statistics().step + 2:
            raise AssertionError(
                f"expected a row for each of {experiment.surgery.statistics().step + 1} steps, found {len(log) - 1}."
            )
    ratios = sorted(b / a for a, b in zip(plain, observed, strict=True))
    half = 0.98 * math.sqrt(rounds)  # ranks beside the middle between which the median lies, with 95% confidence
    low, high = ratios[max(0, int(rounds / 2 - half))], ratios[min(rounds - 1, math.ceil(rounds / 2 + half))]
    middle = percentiles(ratios)
    return {
        "kind": "observing", **experiment.point, "read_every": READ_EVERY, "rounds": rounds,
        "plain_s": percentiles(plain).p50, "observed_s": percentiles(observed).p50, "ratio": middle.p50,
        "ratio_p20": middle.p20, "ratio_p80": middle.p80, "ratio_low": low, "ratio_high": high,
        "recording_s": experiment.recording_s / steps,
    }  # fmt: skip


def table(results: Results) -> str:
    """As docs/monitor.md shows it."""
    row, env = results.where("observing")[0], results.environment
    share = row["recording_s"] / row["plain_s"]
    return "\n".join([
        f"| {env['device']}, {env['threads']} threads, torch {env['versions']['torch']} | |",
        "| --- | ---: |",
        f"| plain step (ResNet-18, {row['tasks']} tasks, batch {row['batch']}, {row['size']}×{row['size']}) | "
        f"{row['plain_s'] * 1e3:.1f} ms |",
        f"| observed: `split` under `\"sum\"`, a row a step, read every {row['read_every']} | {row['observed_s'] * 1e3:.1f} ms |",
        f"| observed / plain, median of {row['rounds']} pairs (95 % interval of the median) | "
        f"{row['ratio']:.4f} ({row['ratio_low']:.4f} – {row['ratio_high']:.4f}) |",
        f"| of single pairs, 20th to 80th percentile | {row['ratio_p20']:.3f} – {row['ratio_p80']:.3f} |",
        f"| of this in the monitor's own calls, rows and files included | "
        f"{row['recording_s'] * 1e6:.0f} µs, {share:.2%} of a step |",
    ])  # fmt: skip


def newest() -> Results:
    """Of the committed results."""
    runs = [Results.read(path) for path in sorted(RESULTS.glob("*.json"))]
    if not runs:
        raise ValueError(f"{RESULTS}: expected a result of `python benchmarks/observing.py --json`, found none.")
    return max(runs, key=lambda run: str(run.environment["date"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="pairs of steps (default 400)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="20 pairs on small images, to see that it works; measures nothing")
    parser.add_argument("--json", action="store_true", help="write the result where docs/monitor.md has it from")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only look whether FILE shows the newest result")
    arguments = parser.parse_args(argv)
    if arguments.check is not None:
        expected = table(newest())
        if expected in arguments.check.read_text():
            return 0
        print(f"{arguments.check}: expected this table, found another or none:\n{expected}", file=sys.stderr)
        return 1
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    environment = describe(device, arguments.quick)
    disturbance = Disturbance()
    row = measure(device, Batch(2, 32) if arguments.quick else BATCH, 20 if arguments.quick else arguments.rounds)
    environment["disturbance"] = disturbance.share()
    results = Results(RESULTS / f"{slug(environment)}.json", environment, [row])
    print(table(results))
    print(json.dumps({"others' share of the CPUs": environment["disturbance"]}), file=sys.stderr)
    if arguments.json and not arguments.quick:
        results.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
