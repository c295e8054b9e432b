"""Methods and balancers × seeds with any trainer: trains what is missing, resumes what was cut off, and shows means and spreads.

    python examples/compare.py nyuv2 --arms equal pcgrad uncertainty pcgrad+uncertainty single --seeds 0 1 2 --out runs/compare \\
        -- --tasks segmentation depth --epochs 20

Behind -- stand the trainer's own options, the same for every run. An arm is a method, a balancer, METHOD+BALANCER, "equal" (summed
losses), or "single" (each task alone, the baseline of Δm). The same command again goes on where the last one stopped. --out then
holds the run folders ARM/seed-N, their output in logs/, table.md, table.csv, metrics.png and scores.png.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.arguments import at_least
from harness.arms import Run, plan
from harness.checkpoint import atomic_write
from harness.comparison import Finished, collect, markdown, summarize, write_csv
from harness.comparison_plots import plot_metrics, plot_scores
from harness.errors import RunError
from harness.run_folder import RunFolder
from rich.console import Console
from rich.progress import Progress

EXAMPLES = Path(__file__).resolve().parent
TRAINERS = tuple(sorted(file.parent.name for file in EXAMPLES.glob("*/train.py")))
TAKEN = {"--method", "--balancer", "--seed", "--out", "--resume"}  # what the comparison says for each run


def build_parser() -> argparse.ArgumentParser:
    """The command line, without what stands behind --."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2])
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs side by side; they share the CPU's cores evenly")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, collect, show; returns the exit status: 0, 1 for an error or a run that failed, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    arguments = build_parser().parse_args(given[:cut])
    options = given[cut + 1 :]
    console = Console()
    try:
        if taken := sorted({option.partition("=")[0] for option in options} & TAKEN):
            raise RunError(
                f"{' '.join(taken)}: expected before --, by --arms, --seeds or --out, found behind it; leave it out there."
            )
        runs = plan(arguments.arms, arguments.seeds, _tasks(options))
        failed = train(arguments.trainer, runs, options, arguments.out, arguments.jobs, console)
        finished = collect(runs, arguments.out)
        if finished:
            show(finished, arguments.trainer, arguments.out, console)
        for run in failed:
            log = _log(run, arguments.out)
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            print(f"error: {run.arm}, seed {run.seed}: {last} (all of it in {log})", file=sys.stderr)
        return 1 if failed else 0
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; finished runs are kept, and the same command goes on with the rest.", file=sys.stderr)
        return 130


def train(trainer: str, runs: Sequence[Run], options: Sequence[str], out: Path, jobs: int, console: Console) -> list[Run]:
    """Train every run that is not finished, `jobs` at a time, and return those that failed."""
    waiting = [run for run in runs if not RunFolder.existing(run.folder(out)).table.is_file()]
    (out / "logs").mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    active: dict[Run, subprocess.Popen[bytes]] = {}
    failed: list[Run] = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    run = waiting.pop(0)
                    console.print(f"{run.arm}, seed {run.seed}: {'resumes' if _begun(run, out) else 'starts'}", highlight=False)
                    active[run] = _start(trainer, run, options, out, threads)
                for run, process in list(active.items()):
                    if process.poll() is not None:
                        del active[run]
                        progress.advance(bar)
                        if process.returncode != 0:
                            failed.append(run)
                time.sleep(0.1)
        finally:  # the trainers write a checkpoint on SIGTERM
            for process in active.values():
                process.terminate()
            for process in active.values():
                process.wait()
    return failed


def show(finished: Sequence[Finished], trainer: str, out: Path, console: Console) -> None:
    """Write table.md, table.csv and the pictures, and print the table."""
    metrics, summaries = summarize(finished)
    text = markdown(metrics, summaries)
    with atomic_write(out / "table.md") as file:
        file.write(text.encode())
    write_csv(out / "table.csv", metrics, summaries)
    plot_metrics(metrics, summaries, out / "metrics.png", title=f"{trainer}: validation after the last epoch, a dot a seed")
    plot_scores(finished, out, out / "scores.png", title=f"{trainer}: score on the validation set")
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(finished)} finished runs; table.md, table.csv and pictures are in {out}", highlight=False, soft_wrap=True)


def _begun(run: Run, out: Path) -> bool:
    return RunFolder.existing(run.folder(out)).config.is_file()


def _log(run: Run, out: Path) -> Path:
    return out / "logs" / f"{run.arm}-seed-{run.seed}.txt"


def _start(trainer: str, run: Run, options: Sequence[str], out: Path, threads: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(EXAMPLES / trainer / "train.py"), *options, *run.options, "--seed", str(run.seed),
               "--out", str(run.folder(out)), *(["--resume"] if _begun(run, out) else [])]  # fmt: skip
    with open(_log(run, out), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def _tasks(options: Sequence[str]) -> list[str]:
    """What follows --tasks."""
    if "--tasks" not in options:
        return []
    behind = options[options.index("--tasks") + 1 :]
    end = next((index for index, option in enumerate(behind) if option.startswith("-")), len(behind))
    return list(behind[:end])


if __name__ == "__main__":
    sys.exit(main())
