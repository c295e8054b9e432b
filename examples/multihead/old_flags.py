"""Older scripts' flags, in the words that all trainers share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.errors import RunError

DOCUMENT = """Flags of older scripts mean, and may not contradict:

    --use_uncertainty_weighting true    --balancer uncertainty      (false: --balancer none)
    --initial_log_vars "0,0,0,0"        --balancer-option initial_log_vars=(0,0,0,0), log sigma^2 at the start, one a task
    --gradient_normalization true       --method dbmtl --method-option beta=0.0: the tasks' gradients at the class token are
                                        brought to one length and summed (false: nothing)
"""
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def translate(argv: Sequence[str]) -> list[str]:
    """`argv` with the flags of `DOCUMENT` replaced; a run without --out gets the first free runs/multihead, runs/multihead-2, …

    Older scripts normalised gradients beside uncertainty weighting, so what they mean is no balancer: it is how gradients meet.

    Raises:
        RunError: a value that is none, or a flag that contradicts another; the message names both.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--use_uncertainty_weighting", "--gradient_normalization", "--initial_log_vars"):
        parser.add_argument(name)
    old, rest = parser.parse_known_args(argv)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--balancer")
    peek.add_argument("--balancer-option", action="append", default=[])
    peek.add_argument("--method")
    peek.add_argument("--method-option", action="append", default=[])
    peek.add_argument("--out")
    new, _ = peek.parse_known_args(rest)
    weighting = _truth("--use_uncertainty_weighting", old.use_uncertainty_weighting)
    if weighting is not None:
        wanted = ("uncertainty", "uw") if weighting else ("none",)
        if new.balancer is None:
            rest += ["--balancer", wanted[0]]
        elif new.balancer not in wanted:
            raise _contradiction(f"--use_uncertainty_weighting {old.use_uncertainty_weighting}", f"--balancer {wanted[0]}",
                                 f"--balancer {new.balancer}")  # fmt: skip
    if old.initial_log_vars is not None:
        if not weighting and new.balancer not in ("uncertainty", "uw"):
            raise RunError(
                f"--initial_log_vars {old.initial_log_vars!r}: expected --use_uncertainty_weighting true or --balancer uncertainty "
                "beside it, for nothing else has log-variances; add one or leave it out."
            )
        if given := [option for option in new.balancer_option if option.startswith("initial_log_vars=")]:
            raise _contradiction("--initial_log_vars", "--balancer-option initial_log_vars=…", f"--balancer-option {given[0]}")
        rest += ["--balancer-option", f"initial_log_vars={_numbers(old.initial_log_vars)}"]
    if _truth("--gradient_normalization", old.gradient_normalization):
        if new.method is not None:
            raise _contradiction("--gradient_normalization true", "--method dbmtl with beta=0", f"--method {new.method}")
        if given := [option for option in new.method_option if option.startswith("beta=")]:
            raise _contradiction("--gradient_normalization true", "--method-option beta=0.0", f"--method-option {given[0]}")
        rest += ["--method", "dbmtl", "--method-option", "beta=0.0"]
    if new.out is None and "--resume" not in rest:
        rest += ["--out", str(_free_folder(Path("runs/multihead")))]
    return rest


def _truth(flag: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in _TRUTH:
        raise RunError(f"{flag} {text}: expected true or false.")
    return _TRUTH[text.lower()]


def _numbers(text: str) -> str:
    """ "0, -1.5" -> "(0.0,-1.5,)" """
    try:
        return "(" + "".join(f"{float(part)!r}," for part in text.split(",")) + ")"
    except ValueError:
        raise RunError(f"--initial_log_vars {text!r}: expected one number a task, between commas, such as 0,0,0,0.") from None


def _contradiction(old: str, meaning: str, new: str) -> RunError:
    return RunError(f"{old} means {meaning} and contradicts {new}; leave one of them out.")


def _free_folder(first: Path) -> Path:
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path
