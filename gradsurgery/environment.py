"""What a result, or a bug, may depend on: versions, devices, compilers, settings; without a word about who is asking."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradsurgery.ops import build_info

PACKAGES = (
    "numpy", "torchvision", "triton", "lightning", "accelerate", "transformers", "torchmetrics", "tensorboard", "matplotlib",
    "h5py", "scipy", "pillow", "rich", "torchjd", "pytest", "setuptools", "ninja", "pybind11",
)  # fmt: skip
"""That gradsurgery, its examples or its tests use, beside torch."""

VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX",
    "WORLD_SIZE", "NCCL_DEBUG", "GRADSURGERY_BUILD", "GRADSURGERY_CPU_CAPABILITY", "GRADSURGERY_CUDA", "GRADSURGERY_DATA",
    "GRADSURGERY_REQUIRE_CUDA",
)  # fmt: skip
"""That results depend on; no others are shown."""

INSTRUCTIONS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "asimd", "sve")


def environment() -> dict[str, dict[str, Any]]:
    """Facts by section, as JSON can hold them; None for what is not there. Home folders are ~, the user's name is <user>.

    A section that cannot be found out holds nothing but the ``error``.
    """
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "gradsurgery": _gradsurgery,
        "torch": _torch,
        "cuda": _cuda,
        "system": _system,
        "cpu": _cpu,
        "compilers": _compilers,
        "variables": _variables,
        "distributed": _distributed,
        "packages": lambda: {name: package_version(name) for name in PACKAGES},
    }
    return {name: _nameless(_found(section)) for name, section in sections.items()}


def cpu_name() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def package_version(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _found(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return section()
    except Exception as error:  # whatever is broken here is what the others are asked for
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _gradsurgery() -> dict[str, Any]:
    folder = Path(__file__).resolve().parent
    compiled = sorted(path.name for path in folder.iterdir() if path.suffix in (".so", ".pyd"))
    info = build_info()
    del info["torch"]
    return {**info, "folder": str(folder), "compiled": compiled}


def _torch() -> dict[str, Any]:
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cuda() -> dict[str, Any]:
    smi = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not torch.cuda.is_available():
        return {"available": False, "driver": smi, "devices": []}
    devices = []
    for k in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(k)
        memory = round(one.total_memory / 2**30, 1)
        devices.append({"name": one.name, "capability": f"{one.major}.{one.minor}", "memory_gib": memory})
    return {"available": True, "driver": smi, "devices": devices}


def _system() -> dict[str, Any]:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except (OSError, AttributeError):
        name = None
    return {
        "os": name or platform.system(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
    }


def _cpu() -> dict[str, Any]:
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def _compilers() -> dict[str, Any]:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else "nvcc"
    release = re.search(r"release ([\d.]+)", _output(nvcc, "--version") or "")
    return {
        "c++": _first_line(*(shlex.split(os.environ.get("CXX", "")) or ["c++"]), "--version"),
        "nvcc": release.group(1) if release else None,
    }


def _variables() -> dict[str, Any]:
    return {name: value for name, value in sorted(os.environ.items()) if name in VARIABLES}


def _distributed() -> dict[str, Any]:
    d = torch.distributed
    if not d.is_available():
        return {"available": False, "backends": []}
    there = {"gloo": d.is_gloo_available(), "nccl": d.is_nccl_available(), "mpi": d.is_mpi_available()}
    return {"available": True, "backends": [name for name, here in there.items() if here]}


def _cpuinfo(key: str) -> str | None:
    try:
        found = re.search(rf"^{key}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None


def _first_line(*command: str) -> str | None:
    output = _output(*command)
    return output.splitlines()[0].strip() if output else None


def _output(*command: str) -> str | None:
    """What a program prints; None where it is not there, or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _nameless(value: Any) -> Any:
    """Without home folders and the user's name, wherever they stand."""
    if isinstance(value, dict):
        return {name: _nameless(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_nameless(one) for one in value]
    if not isinstance(value, str):
        return value
    for home in {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))} - {"~", "/", ""}:
        value = re.sub(rf"{re.escape(home)}(?![\w-])", "~", value)
    user = _user()
    return re.sub(rf"(?<![\w-]){re.escape(user)}(?![\w-])", "<user>", value) if user else value


def _user() -> str | None:
    """None where nobody knows, or it is nobody's own."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, in a container
        return None
    return None if user == "root" else user
