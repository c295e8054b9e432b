"""Where rows come from: device, versions, commit, and how quiet the machine was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import gradsurgery as gs
from gradsurgery.environment import cpu_name, package_version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "torchjd", "cvxpy", "gradsurgery")


def describe(device: torch.device, quick: bool) -> dict[str, Any]:
    """What every row of this run has in common."""
    info = gs.build_info()
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "kind": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: info["version"] if name == "gradsurgery" else package_version(name) for name in PACKAGES},
        "commit": commit(),
        "build": info,
        "quick": quick,
    }


def commit() -> str | None:
    """The commit that is measured, with "+" when the library or the benchmark differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "gradsurgery", "csrc", "benchmarks/*.py", "benchmarks/providers")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(environment: dict[str, Any]) -> str:
    """<device>-<date>, for a file's name."""
    words = re.sub(r"[^a-z0-9]+", "-", str(environment["device"]).lower()).strip("-")
    cores = f"-{environment['cores']}-cores" if environment["kind"] == "cpu" else ""
    return f"{words}{cores}-{environment['date']}"


def _busy_s() -> float | None:
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


@dataclass
class Disturbance:
    """The share of the CPUs' time that other processes took since this was created."""

    start_s: float = field(default_factory=time.monotonic)
    start_busy_s: float | None = field(default_factory=_busy_s)
    start_own_s: float = field(default_factory=_own_s)

    def share(self) -> float | None:
        """Between 0 and 1; None where the system does not tell."""
        busy = _busy_s()
        if busy is None or self.start_busy_s is None:
            return None
        others = (busy - self.start_busy_s) - (_own_s() - self.start_own_s)
        capacity = (time.monotonic() - self.start_s) * (os.cpu_count() or 1)
        return min(max(others / capacity, 0.0), 1.0)
