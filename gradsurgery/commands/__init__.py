"""The command ``gradsurgery``: what is installed, what a run shows, which methods there are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gradsurgery import __version__

_RAW = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: what follows the command's name; None: what the process was given.

    Returns:
        The exit status: 0; 1 where the command could not do it, and said why on stderr; 2, by argparse, for wrong arguments; 141
        where whoever read the output went away.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # Python would flush once more at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradsurgery",
        description="Gradient surgery for multi-task learning.",
        epilog="Examples:\n  gradsurgery info --json\n  gradsurgery report runs/first --open\n  gradsurgery methods",
        formatter_class=_RAW,
    )
    parser.add_argument("--version", action="version", version=f"gradsurgery {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = commands.add_parser(
        "info",
        help="what is installed and what it runs on, for a bug report",
        description="What is installed and what it runs on, for a bug report: versions, devices, compilers, settings. Home folders "
        "are shown as ~ and your user name as <user>.",
        epilog="Example:\n  gradsurgery info > info.txt",
        formatter_class=_RAW,
    )
    info.add_argument("--json", action="store_true", help="for machines")
    info.set_defaults(run=_info)

    report = commands.add_parser(
        "report",
        help="what a run's log shows: a page with figures, and its findings here",
        description="Reads a run folder that gradsurgery.Monitor or a trainer has written, and makes a page that says which tasks "
        "conflict and which dominate. The findings are printed, too.",
        epilog="Example:\n  gradsurgery report runs/first --out report --open",
        formatter_class=_RAW,
    )
    report.add_argument("folder", metavar="RUN", type=Path, help="the run folder, with log.csv")
    report.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (RUN/report)")
    report.add_argument("--open", action="store_true", help="show the page in the web browser")
    report.set_defaults(run=_report)

    methods = commands.add_parser(
        "methods",
        help="the methods with their options and papers",
        description="The methods that GradientAggregator knows, those of installed packages included, by family.",
        epilog="Examples:\n  gradsurgery methods | grep NeurIPS\n  gradsurgery methods pcgrad",
        formatter_class=_RAW,
    )
    methods.add_argument("name", metavar="METHOD", nargs="?", help="one method: its formula, options, properties and paper")
    methods.set_defaults(run=_methods)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    from gradsurgery.commands.info import show

    return show(as_json=arguments.json)


def _report(arguments: argparse.Namespace) -> int:
    from gradsurgery.commands.report import show

    return show(arguments.folder, arguments.out, in_browser=arguments.open)


def _methods(arguments: argparse.Namespace) -> int:
    from gradsurgery.commands.methods import show

    return show(arguments.name)
