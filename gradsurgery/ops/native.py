"""Loads the compiled kernels over the reference, and tells what is there and what is missing."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import coordinatewise, reference, samples  # noqa: F401  (define the operators that the modules below implement)

CAPABILITIES = ("baseline", "avx2", "avx512")


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """The module, or the reason why there is none."""
    try:
        return importlib.import_module(f"gradsurgery.{name}"), None
    except ModuleNotFoundError:
        tree = Path(__file__).resolve().parents[2]
        if (tree / "csrc").is_dir():
            return (
                None,
                f"not built in the source tree {tree}, which is what Python imports here (start it elsewhere, or pip install -e .)",
            )
        return None, "not built"
    except ImportError as error:  # built for another torch, or CUDA kernels beside a CPU build of torch
        return None, str(error).splitlines()[0]


_host, _host_missing = _load("_host")
_cpu, _cpu_missing = _load("_C")
_cuda, _cuda_missing = _load("_cuda") if torch.version.cuda else (None, "torch is a build without CUDA")

pcgrad_small: Callable[..., None] | None = _cpu.pcgrad_small if _cpu else None
pcgrad_weights_small: Callable[..., None] | None = _cpu.pcgrad_weights_small if _cpu else None

_warned: set[str] = set()


def _warn_once(device: str, missing: str | None) -> None:
    if device in _warned:
        return
    _warned.add(device)
    warnings.warn(
        f"gradsurgery runs on its pure-PyTorch reference on {device}: right, but slower. Compiled kernels: {missing}. "
        "Reinstall with a C++ compiler (and nvcc for CUDA) to build them; gradsurgery.build_info() tells more.",
        RuntimeWarning,
        stacklevel=3,
    )


def warn_if_reference(device: torch.device) -> None:
    """Says once a process that a device runs without compiled kernels."""
    if device.type == "cuda":
        if _cuda is None:
            _warn_once("cuda", _cuda_missing)
    elif _cpu is None:
        _warn_once("cpu", _cpu_missing)


def build_info() -> dict[str, Any]:
    """What is compiled, for what, and what is missing.

    Returns:
        ``version``, ``torch``; ``cpu`` and ``cuda``: True where compiled kernels run; ``cpu_capability``: the instruction set in
        use, ``cpu_capability_available``: the widest of this machine (None without compiled code); ``missing``: a reason for each
        part that is not there.
    """
    from gradsurgery import __version__

    missing = {"cpu": _cpu_missing, "cuda": _cuda_missing, "host": _host_missing}
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu": _cpu is not None,
        "cuda": _cuda is not None,
        "cpu_capability": _host.cpu_capability() if _host else None,
        "cpu_capability_available": _host.cpu_capability_available() if _host else None,
        "missing": {part: reason for part, reason in missing.items() if reason is not None},
    }


_wish = os.environ.get("GRADSURGERY_CPU_CAPABILITY")
if _wish and _host and _host.cpu_capability() != _wish:
    known = f"one of {', '.join(CAPABILITIES)}" if _wish not in CAPABILITIES else f"at most {_host.cpu_capability_available()} here"
    warnings.warn(
        f"GRADSURGERY_CPU_CAPABILITY={_wish!r} cannot be met: expected {known}; using {_host.cpu_capability()}.",
        RuntimeWarning,
        stacklevel=2,
    )
if _cpu is None:
    _warn_once("cpu", _cpu_missing)
