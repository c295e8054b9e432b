"""Builds the extension, and is (as the module ``setup``) the PEP 517 backend that ``pip install .`` calls.

Plain setuptools would build in an isolated environment with a torch of its own, a second download of gigabytes. This backend asks
for nothing when the environment that pip installs into already has a torch that is new enough, and builds against that one.

Environment variables:
    GRADSURGERY_BUILD=0     install without compiled code; everything runs on the pure-PyTorch reference
    GRADSURGERY_CUDA=0|1    leave the CUDA kernels out | fail where they cannot be built (default: build them where possible)
    TORCH_CUDA_ARCH_LIST    architectures to compile for, as everywhere in PyTorch
    MAX_JOBS                compilers to run at once
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist  # noqa: F401  (PEP 517 hooks)

MIN_TORCH = (2, 10)
# Binaries built for this version of the stable ABI load in every later torch.
STABLE_ABI = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"
# Binaries run on every later minor version: 8.0 serves 8.6 and 8.9, 10.0 serves 10.3.
ARCHITECTURES = (75, 80, 90, 100, 120)


def say(message: str) -> None:
    """Reports to the build log, which pip shows with -v and on failure."""
    print(f"[gradsurgery] {message}", file=sys.stderr)


# --- the torch to build against ---------------------------------------------------------------------------------------------------


def _site_directories() -> list[str]:
    import site

    candidates = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    candidates += [*site.getsitepackages(), site.getusersitepackages()]
    return [d for d in dict.fromkeys(candidates) if os.path.isdir(d)]


def _expose_installed_torch() -> bool:
    """Makes the user's torch importable from inside pip's isolated environment; False when there is none that is new enough."""
    if importlib.machinery.PathFinder.find_spec("torch"):
        return True
    for directory in _site_directories():
        found = next(iter(importlib.metadata.distributions(name="torch", path=[directory])), None)
        if found is None:
            continue
        version = tuple(int(part) for part in found.version.split("+")[0].split(".")[:2])
        if version >= MIN_TORCH:
            sys.path.append(directory)
            return True
        say(f"torch {found.version} in {directory} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}: building against a newer one")
    return False


def _torch_requirement() -> list[str]:
    return [] if _expose_installed_torch() or not _wants_build() else [f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """PEP 517 hook."""
    return _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """PEP 660 hook."""
    return _torch_requirement()


def prepare_metadata_for_build_wheel(*args: Any, **kwargs: Any) -> Any:
    """PEP 517 hook."""
    _expose_installed_torch()
    return build_meta.prepare_metadata_for_build_wheel(*args, **kwargs)


def prepare_metadata_for_build_editable(*args: Any, **kwargs: Any) -> Any:
    """PEP 660 hook."""
    _expose_installed_torch()
    return build_meta.prepare_metadata_for_build_editable(*args, **kwargs)


def build_wheel(*args: Any, **kwargs: Any) -> Any:
    """PEP 517 hook."""
    _expose_installed_torch()
    return build_meta.build_wheel(*args, **kwargs)


def build_editable(*args: Any, **kwargs: Any) -> Any:
    """PEP 660 hook."""
    _expose_installed_torch()
    return build_meta.build_editable(*args, **kwargs)


# --- what can be built here -------------------------------------------------------------------------------------------------------


def _wants_build() -> bool:
    return os.environ.get("GRADSURGERY_BUILD", "1") != "0"


def _has_cxx() -> bool:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    return any(shutil.which(name) for name in names)


def _cuda_home() -> Path | None:
    """The toolkit's root. The nvcc on PATH may be a wrapper elsewhere, so nvcc itself is asked."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        dry = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
        candidates += [line.split("TOP=", 1)[1].strip() for line in dry.stderr.splitlines() if line.startswith("#$ TOP=")]
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    candidates.append("/usr/local/cuda")
    for candidate in candidates:
        if candidate and Path(candidate, "include", "cuda_runtime.h").exists() and Path(candidate, "bin", "nvcc").exists():
            return Path(candidate).resolve()
    return None


def _nvcc_version(home: Path) -> str:
    text = subprocess.run([str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ", 1)[1].split(",", 1)[0]


def _cuda_obstacle(home: Path | None, torch_cuda: str | None) -> str | None:
    """Why the CUDA kernels cannot be built, or None."""
    if torch_cuda is None:
        return "torch is a build without CUDA"
    if home is None:
        return "no CUDA toolkit (nvcc and its headers) was found; set CUDA_HOME"
    version = _nvcc_version(home)
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is CUDA {version} and torch was built with CUDA {torch_cuda}; their major versions must agree"
    return None


def _architecture_flags(home: Path, gpu_here: bool) -> list[str]:
    """-gencode flags; none where torch chooses by itself (TORCH_CUDA_ARCH_LIST, or the GPU of this machine)."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST") or gpu_here:
        return []
    listed = subprocess.run(
        [str(home / "bin" / "nvcc"), "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    known = [a for a in ARCHITECTURES if f"compute_{a}" in listed]
    newest = known[-1]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


# --- the extension modules --------------------------------------------------------------------------------------------------------


def _extensions() -> tuple[list[Any], dict[str, Any]]:
    if not _wants_build():
        say("GRADSURGERY_BUILD=0: installing without compiled kernels")
        return [], {}
    if not _has_cxx():
        say("no C++ compiler was found: installing without compiled kernels (slower; set CXX or install one, then reinstall)")
        return [], {}
    _expose_installed_torch()
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "gradsurgery: building the extension needs torch>=2.10 in this environment. Install torch first, or set "
            "GRADSURGERY_BUILD=0 to install without compiled kernels."
        ) from error
    import pybind11

    home = _cuda_home()
    if home:
        os.environ["CUDA_HOME"] = str(home)  # read by torch.utils.cpp_extension at import
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    # Listed so that a changed header rebuilds and an sdist carries it.
    headers = sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in {".h", ".cuh"})
    if sys.platform == "win32":
        cxx = ["/O2", "/std:c++20"]
    else:
        # Contraction changes no product of 32- or 16-bit inputs (exact in float64) and speeds up the rest; never -ffast-math.
        cxx = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"]
    stable = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
    modules: list[Any] = [
        CppExtension(
            "gradsurgery._C",
            [
                "csrc/register_cpu.cpp",
                "csrc/gram/gram_cpu.cpp",
                "csrc/combine/combine_cpu.cpp",
                "csrc/combine/coordinatewise_cpu.cpp",
                "csrc/buffers/buffers_cpu.cpp",
                "csrc/surgery/samples_cpu.cpp",
            ],
            extra_compile_args={"cxx": cxx + stable},
            depends=headers,
            py_limited_api=True,
        ),
        # Free of torch, which brings a pybind11 of its own; CppExtension would mix the two.
        _plain_extension("gradsurgery._host", ["csrc/host/host.cpp"], pybind11.get_include(), cxx, headers),
    ]
    cuda = os.environ.get("GRADSURGERY_CUDA", "auto")
    if cuda != "0":
        obstacle = _cuda_obstacle(home, torch.version.cuda)
        if obstacle is None and home is not None:
            flags = ["-O3", "-std=c++17", *_architecture_flags(home, torch.cuda.is_available())]
            modules.append(
                CUDAExtension(
                    "gradsurgery._cuda",
                    [
                        "csrc/register_cuda.cpp",
                        "csrc/common/cuda_table_cache.cu",
                        "csrc/common/cuda_upload.cu",
                        "csrc/gram/gram_cuda.cu",
                        "csrc/weights/pcgrad_cuda.cu",
                        "csrc/weights/solve_cuda.cu",
                        "csrc/combine/combine_cuda.cu",
                        "csrc/combine/coordinatewise_cuda.cu",
                        "csrc/buffers/buffers_cuda.cu",
                        "csrc/surgery/samples_cuda.cu",
                        "csrc/surgery/surgery_cuda.cu",
                    ],
                    extra_compile_args={"cxx": [*cxx, *stable, "-DUSE_CUDA"], "nvcc": flags},
                    depends=headers,
                    py_limited_api=True,
                )
            )
        elif cuda == "1":
            raise SystemExit(f"gradsurgery: GRADSURGERY_CUDA=1, but {obstacle}.")
        else:
            say(f"without CUDA kernels: {obstacle}")
    say(f"building {', '.join(m.name for m in modules)} against torch {torch.__version__} in {Path(torch.__file__).parent}")
    return modules, {"build_ext": BuildExtension}


def _plain_extension(name: str, sources: list[str], include: str, cxx: list[str], headers: list[str]) -> Any:
    """An extension module that knows nothing of torch."""
    from setuptools import Extension

    return Extension(
        name,
        sources,
        include_dirs=[include],
        extra_compile_args={"cxx": cxx},
        depends=headers,
        language="c++",
    )


def main() -> None:
    """Entry point of ``python setup.py …`` and of setuptools' backend."""
    from setuptools import setup

    # An sdist is source: what it holds does not depend on what could be built here.
    modules, commands = ([], {}) if "sdist" in sys.argv else _extensions()
    setup(ext_modules=modules, cmdclass=commands)


if __name__ == "__main__":
    main()
