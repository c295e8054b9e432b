"""Methods and balancers × seeds with any trainer: trains what is missing, resumes what was cut off, and shows means and spreads.

    python examples/compare.py nyuv2 --arms equal pcgrad uncertainty pcgrad+uncertainty single --seeds 0 1 2 --out runs/compare \\
        -- --tasks segmentation depth --epochs 20

Behind -- stand the trainer's own options, the same for every run. An arm is a method, a balancer, METHOD+BALANCER, "equal" (summed
losses), or "single" (each task alone, the baseline of Δm). The same command again, with more arms or seeds if you like, goes on
where the last one stopped. --out then holds the run folders ARM/seed-N, their output in logs/, table.md, table.csv, metrics.png,
scores.png, and in comparison.json the trainer and its options.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from harness.arguments import at_least
from harness.arms import Run, plan
from harness.checkpoint import atomic_write
from harness.comparison import Finished, collect, explanation, markdown, summarize, write_csv
from harness.comparison_plots import plot_metrics, plot_scores
from harness.errors import RunError
from harness.interrupt import Interrupt
from harness.run_folder import RunFolder, read_json, write_json
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
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs side by side; they share torch's threads evenly")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, collect, show; returns the exit status: 0, 1 for an error or a run that failed, 128 + n after signal n."""
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
        tasks, lasting = read_options(options)
        runs = plan(arguments.arms, arguments.seeds, tasks)
        open_comparison(arguments.out, arguments.trainer, lasting)
        with Interrupt() as interrupt:
            failed = train(arguments.trainer, runs, options, arguments.out, arguments.jobs, console, interrupt)
        if interrupt.signal is not None:
            print("Interrupted; what the runs reached is kept, and the same command goes on from there.", file=sys.stderr)
            return 128 + interrupt.signal
        show(collect(runs, arguments.out), arguments.trainer, arguments.out, console)
        for run, status in failed.items():
            log = _log(run, arguments.out)
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            killed = f"killed by signal {-status}; its last line: " if status < 0 else ""
            print(f"error: {run.arm}, seed {run.seed}: {killed}{last} (all of it in {log})", file=sys.stderr)
        return 1 if failed else 0
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while no run is active, or the second
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130


def read_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tasks that the trainer's options name, and those options that --out stands for: all but --device and --workers."""
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--device")
    machine.add_argument("--workers")
    lasting = machine.parse_known_args(options)[1]
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tasks", nargs="+", default=[])
    return parser.parse_known_args(options)[0].tasks, lasting


def open_comparison(out: Path, trainer: str, options: Sequence[str]) -> None:
    """Make --out, or check that it is of the same trainer and options, as finished runs in it are taken as they are.

    Raises:
        RunError: it is a file, or of others.
    """
    file, asked = out / "comparison.json", {"trainer": trainer, "options": list(options)}
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: expected a folder, found a file; choose another name.")
    if file.is_file():
        if (found := read_json(file)) != asked:
            was = f"{found.get('trainer')} -- {' '.join(map(str, found.get('options', [])))}".strip()
            raise RunError(
                f"--out {out}: holds a comparison of {was}, now asked for {trainer} -- {' '.join(options)}".rstrip()
                + "; repeat those options, or choose another --out."
            )
        return
    (out / "logs").mkdir(parents=True, exist_ok=True)
    write_json(file, asked)


def train(
    trainer: str, runs: Sequence[Run], options: Sequence[str], out: Path, jobs: int, console: Console, interrupt: Interrupt
) -> dict[Run, int]:
    """Train every run that is not finished, `jobs` at a time, until a signal; returns those that failed and their exit status."""
    waiting = [run for run in runs if not RunFolder.existing(run.folder(out)).table.is_file()]
    threads = max(1, torch.get_num_threads() // jobs)
    active: dict[Run, subprocess.Popen[bytes]] = {}
    failed: dict[Run, int] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
        try:
            while (waiting or active) and interrupt.signal is None:
                while waiting and len(active) < jobs:
                    run = waiting.pop(0)
                    console.print(f"{run.arm}, seed {run.seed}: {'resumes' if _begun(run, out) else 'starts'}", highlight=False)
                    active[run] = _start(trainer, run, options, out, threads)
                for run, process in list(active.items()):
                    if process.poll() is not None:
                        del active[run]
                        progress.advance(bar)
                        if process.returncode != 0:
                            failed[run] = process.returncode
                time.sleep(0.1)
        finally:  # the trainers write a checkpoint on SIGTERM
            for process in active.values():
                process.terminate()
            for process in active.values():
                process.wait()
    return failed


def show(finished: Sequence[Finished], trainer: str, out: Path, console: Console) -> None:
    """Write table.md, table.csv and the pictures, and print the table; nothing while only runs of a task alone are finished."""
    metrics, summaries = summarize(finished)
    if not summaries:
        console.print("No run of several tasks is finished yet, so there is nothing to compare.", highlight=False, soft_wrap=True)
        return
    text = markdown(metrics, summaries)
    if sentence := explanation(finished):
        text += f"\n{sentence}\n"
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
        # In a session of its own: Ctrl-C in a terminal would reach the trainer too, and the SIGTERM that follows from here would
        # then be its second signal, which ends it before the checkpoint.
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
