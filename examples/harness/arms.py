"""The arms of a comparison: a method, a balancer, or both; and which runs they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradsurgery as gs
from harness.arguments import BALANCERS
from harness.errors import RunError

EQUAL, SINGLE = "equal", "single"


@dataclass(frozen=True)
class Run:
    """One training run of a comparison: the arm it belongs to, its seed, and the options that make it this arm's."""

    arm: str
    seed: int
    options: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """It trains one task, for the baseline of Δm."""
        return self.arm.startswith(f"{SINGLE}-")

    def folder(self, out: Path) -> Path:
        return out / self.arm / f"seed-{self.seed}"


def arm_options(arm: str) -> tuple[str, ...]:
    """ "pcgrad", "uncertainty", "pcgrad+uncertainty" or "equal" (plain summed losses) as a trainer's options.

    Raises:
        RunError: a name that is neither a method nor a balancer, or two of one sort.
    """
    if arm == EQUAL:
        return ("--method", "sum", "--balancer", "none")
    method, balancer = "", ""
    for name in arm.split("+"):
        if name in gs.methods() and not method:
            method = name
        elif name in BALANCERS and name != "none" and not balancer:
            balancer = name
        else:
            raise RunError(
                f"--arms {arm}: expected {EQUAL!r}, {SINGLE!r}, a method, a balancer or METHOD+BALANCER, found {name!r}; methods "
                f"are {', '.join(sorted(gs.methods()))}; balancers are {', '.join(BALANCERS[1:])}."
            )
    return ("--method", method or "sum", "--balancer", balancer or "none")


def plan(arms: Sequence[str], seeds: Sequence[int], tasks: Sequence[str]) -> list[Run]:
    """Every run that the arms need, seed by seed, so that what is finished is comparable at any time.

    "single" is one run for each of `tasks` alone: the baseline of Δm.
    """
    for option, given in (("--arms", arms), ("--seeds", seeds)):
        if twice := [value for value in given if list(given).count(value) > 1]:
            raise RunError(f"{option} {twice[0]}: given twice; name each once.")
    options: dict[str, tuple[str, ...]] = {}
    for arm in arms:
        if arm != SINGLE:
            options[arm] = arm_options(arm)
            continue
        if not tasks:
            raise RunError(f"--arms {SINGLE}: expected --tasks among the trainer's options, which names what to train alone.")
        options |= {f"{SINGLE}-{task}": (*arm_options(EQUAL), "--tasks", task) for task in tasks}
    return [Run(arm, seed, these) for seed in seeds for arm, these in options.items()]
