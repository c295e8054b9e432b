"""A trainer from its command line: parse, prepare, train or resume, report."""

import argparse
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from harness.arguments import open_run
from harness.errors import RunError
from harness.problem import Problem
from harness.report import write_report
from harness.reproducibility import seed_everything
from harness.training import Training


def main(parser: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Problem], argv: Sequence[str] | None = None) -> int:
    """Train what `build` makes of the arguments, or resume it.

    Returns:
        The exit status: 0, 1 for an error that the user can correct, 128 + n after signal n.
    """
    console = Console()
    try:
        arguments, folder = open_run(parser, argv)
        seed_everything(arguments.seed, deterministic=arguments.deterministic)
        console.print("Preparing the data and the floors to beat …")
        problem = build(arguments)
        training = Training(problem, arguments, folder, console)
        console.print(
            f"{problem.describe()}, {' + '.join(problem.tasks)}, {arguments.method}, {training.steps_per_epoch} steps an epoch on "
            f"{training.device}; everything goes to {folder.path}."
        )
        signal = training.run()
        if signal is not None:
            console.print(f"Stopped by signal {signal} after step {training.step}; go on with --out {folder.path} --resume.")
            return 128 + signal
        write_report(problem, arguments, folder, console)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # training answers Ctrl-C itself, with a checkpoint
        print("Interrupted outside training; what was written so far is kept.", file=sys.stderr)
        return 130
    return 0
