"""A trainer from its command line: parse, prepare, train or resume, report."""

import argparse
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from harness.arguments import open_run
from harness.errors import RunError
from harness.problem import Problem
from harness.processes import AgreedError, agreed, attempt, is_first, together
from harness.report import write_report
from harness.reproducibility import seed_everything
from harness.run_folder import RunFolder
from harness.training import Training


def main(parser: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Problem], argv: Sequence[str] | None = None) -> int:
    """Train what `build` makes of the arguments, or resume it.

    Under torchrun every process comes here; the first one prints and writes.

    Returns:
        The exit status: 0, 1 for an error that the user can correct, 128 + n after signal n.
    """
    console = Console(quiet=not is_first())

    def prepare() -> tuple[argparse.Namespace, RunFolder, Problem]:
        arguments, folder = open_run(parser, argv)
        seed_everything(arguments.seed, deterministic=arguments.deterministic)
        console.print("Preparing the data and the floors to beat …")
        return arguments, folder, build(arguments)

    try:
        prepared = attempt(prepare)  # by every process alone: floors are measured on all data
        with together():
            arguments, folder, problem = agreed(prepared)
            training = Training(problem, arguments, folder, console)
            console.print(
                f"{problem.describe()}, {' + '.join(problem.tasks)}, {arguments.method}, {training.steps_per_epoch} steps an epoch "
                f"on {training.place}; everything goes to {folder.path}."
            )
            signal = training.run()
        if signal is not None:
            console.print(f"Stopped by signal {signal} after step {training.step}; go on with --out {folder.path} --resume.")
            return 128 + signal
        problem.model.float()  # for the pictures, whose inputs are
        if is_first():
            write_report(problem, arguments, folder, console)
    except RunError as error:
        if is_first() or not isinstance(error, AgreedError):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # training answers Ctrl-C itself, with a checkpoint
        print("Interrupted outside training; what was written so far is kept.", file=sys.stderr)
        return 130
    return 0
