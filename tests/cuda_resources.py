"""What nvcc makes of the kernels, read without a GPU: registers, spills, and the width of loads.

``python tests/cuda_resources.py`` prints a table.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
NO_IMPLICIT = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")  # as torch's build has it
FILES = (
    "gram/gram_cuda.cu",
    "weights/pcgrad_cuda.cu",
    "weights/solve_cuda.cu",
    "combine/combine_cuda.cu",
    "combine/coordinatewise_cuda.cu",
    "buffers/buffers_cuda.cu",
    "surgery/surgery_cuda.cu",
)


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture; sizes in bytes."""

    name: str
    architecture: int
    registers: int
    stack: int
    spills: int
    shared: int


def toolkit() -> Path | None:
    """The folder of nvcc."""
    homes = [os.environ.get("CUDA_HOME"), *map(str, sorted(Path("/usr/local").glob("cuda*"), reverse=True))]
    for home in homes:
        if home and Path(home, "bin", "nvcc").exists():
            return Path(home, "bin")
    found = shutil.which("nvcc")
    return Path(found).parent if found else None


def disassembler() -> Path | None:
    """cuobjdump: of the toolkit, or the one that Triton brings."""
    folders = [toolkit()]
    triton = importlib.util.find_spec("triton")
    if triton and triton.submodule_search_locations:
        folders.append(Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin"))
    for folder in folders:
        if folder and (folder / "cuobjdump").exists():
            return folder / "cuobjdump"
    return None


def compile_kernels(source: str, to: Path, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Kernel]:
    """Compiles one .cu file as the package does, and reads ptxas's report."""
    folder = toolkit()
    assert folder is not None
    include = Path(torch.__file__).parent / "include"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    conversions = [f"-D__CUDA_NO_{part}__" for part in NO_IMPLICIT]
    command = [str(folder / "nvcc"), "-O3", "-std=c++17", "-Xptxas", "-v", *targets, *conversions, f"-I{include}", "-c"]
    done = subprocess.run([*command, str(ROOT / "csrc" / source), "-o", str(to)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source} does not compile:\n{done.stderr}"
    return parse(done.stderr)


def parse(report: str) -> list[Kernel]:
    """The kernels in what ``ptxas -v`` prints."""
    kernels = []
    for block in report.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\w+)' for 'sm_(\d+)a?'", block)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        used = re.search(r"Used (\d+) registers", block)
        assert head
        assert memory
        assert used
        shared = re.search(r"(\d+) bytes smem", block)
        kernels.append(
            Kernel(
                readable(head[1]),
                int(head[2]),
                int(used[1]),
                int(memory[1]),
                int(memory[2]) + int(memory[3]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def readable(mangled: str) -> str:
    """``_ZN11gradsurgery10gram_smallILi8EfEEv...`` -> ``gram_small<8,f>``."""
    rest, name = mangled.removeprefix("_Z").removeprefix("N"), ""
    while length := re.match(r"L?(\d+)", rest):
        stop = length.end() + int(length[1])
        name, rest = rest[length.end() : stop], rest[stop:]
    arguments = re.match(r"I((?:L[ib]\d+E)*)([fd])E", rest)
    if not arguments:
        return name
    numbers = re.findall(r"L[ib](\d+)E", arguments[1])
    return f"{name}<{','.join([*numbers, arguments[2]])}>"


def machine_code(binary: Path, architecture: int) -> dict[str, list[str]]:
    """The instructions of every kernel."""
    tool = disassembler()
    assert tool is not None
    listing = subprocess.run(
        [str(tool), "-sass", "-arch", f"sm_{architecture}", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    result: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if "Function :" in line:
            lines = result.setdefault(readable(line.split(":", 1)[1].strip()), [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_.]+)", line):
            lines.append(match[1])
    return result


def main() -> None:
    """One line a kernel and architecture."""
    if toolkit() is None:
        sys.exit("no nvcc was found; set CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'kernel':28} {'sm':>4} {'registers':>9} {'stack':>6} {'spills':>6} {'shared':>7}")
        for source in FILES:
            for k in sorted(compile_kernels(source, Path(folder, "kernels.o")), key=lambda k: (k.name, k.architecture)):
                print(f"{k.name:28} {k.architecture:>4} {k.registers:>9} {k.stack:>6} {k.spills:>6} {k.shared:>7}")


if __name__ == "__main__":
    main()
