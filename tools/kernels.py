"""What the compiler made of the CUDA kernels: registers, local and shared memory, and how wide the hot loops read device memory.

python tools/kernels.py                     write docs/kernels.md, from the extension that is installed here
python tools/kernels.py --check             fail if a kernel breaks a rule of kernel_rules.py; nothing is written
python tools/kernels.py --binary FILE       the same check of another binary, such as an object file of nvcc

Needs no GPU, but cuobjdump: that of CUOBJDUMP, beside nvcc, on PATH, or of Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import kernel_rules as rules
from sass import Instruction, functions, loops

INTRODUCTION = """\
Read by `python tools/kernels.py` from the machine code of {compiler} for {architectures}.
Another compiler allots registers otherwise: `python tools/kernels.py --check` asks for what `tools/kernel_rules.py` says, and not
for these numbers. None of them was measured on a GPU.

Numbers are of the architectures in this order; one stands for all where they agree. `f`: Run is float, for gradients of float32,
bfloat16 and float16; `d`: Run is double, as soon as one is float64. Local memory is where the compiler spills what does not fit the
registers, in bytes a thread. Shared memory is the static one, in bytes a block; the system keeps 1,024 of them from sm_90 on. The
last column counts the loads of 16 bytes in each loop that has any. There is such a loop for each type of gradients; all branches of
a loop count, also those for other types of outputs.
"""
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "kernels.md"
WIDE = 16


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture.

    Attributes:
        name: ``gram_small<3,f>``.
        architecture: 90 for sm_90.
        registers: of a thread.
        local: bytes of a thread's local memory, into which the compiler spills.
        shared: bytes of a block's static shared memory.
        wide_loads: how many loads of 16 bytes from global memory each loop has that has any.
        forbidden: operations that make sums depend on the order of threads, or round products.
    """

    name: str
    architecture: int
    registers: int
    local: int
    shared: int
    wide_loads: tuple[int, ...]
    forbidden: tuple[str, ...]

    @property
    def base(self) -> str:
        return self.name.split("<", 1)[0]

    @property
    def rows(self) -> int | None:
        """How many it reads at a time: its first number, where it has one."""
        number = re.search(r"<(\d+)", self.name)
        return int(number[1]) if number else None

    @property
    def in_double(self) -> bool:
        return re.search(r"[<,]d[,>]", self.name) is not None

    @property
    def types(self) -> int:
        """Of gradients: float32, bfloat16 and float16, and float64 where Run is double."""
        return 4 if self.in_double else 3


# --- reading the binary -----------------------------------------------------------------------------------------------------------


def disassembler() -> str | None:
    """cuobjdump, or None."""
    named = os.environ.get("CUOBJDUMP")
    if named:
        return named
    folders = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    nvcc = shutil.which("nvcc")
    folders += [Path(nvcc).resolve().parent] if nvcc else []
    folders += sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    for folder in folders:
        if (folder / "cuobjdump").exists():
            return str(folder / "cuobjdump")
    triton = importlib.util.find_spec("triton")
    brought = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (str(brought) if brought and brought.exists() else None)


def extension() -> Path | None:
    """The extension that was built in this checkout, else the one that is installed; None where neither is there."""
    installed = importlib.util.find_spec("gradsurgery")
    folders = [ROOT / "gradsurgery", *map(Path, (installed.submodule_search_locations or []) if installed else [])]
    return next((path for folder in folders for path in sorted(folder.glob("_cuda.*so"))), None)


def output(*command: str) -> Iterator[str]:
    """The lines that a command prints, while it runs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield from process.stdout
        except GeneratorExit:
            process.kill()
            raise
        said = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")


def architectures(listing: Iterable[str]) -> list[int]:
    """Those that ``cuobjdump -lelf`` lists."""
    return sorted({int(number) for line in listing for number in re.findall(r"\.sm_(\d+)a?\.cubin", line)})


def compiler(dump: Iterable[str]) -> str:
    """Who made the machine code, from the start of ``cuobjdump -elf``."""
    found = next((line.split(":", 1)[1].strip() for line in dump if "Tool Version:" in line), None)
    return found or "an unknown compiler"


def readable(mangled: str) -> str:
    """``_ZN11gradsurgery10gram_smallILi8EfEEv...`` -> ``gram_small<8,f>``."""
    rest, name = mangled.removeprefix("_Z").removeprefix("N"), ""
    while length := re.match(r"L?(\d+)", rest):
        stop = length.end() + int(length[1])
        name, rest = rest[length.end() : stop], rest[stop:]
    arguments = re.match(r"I((?:L[a-z]\d+E|NS_\d+\w+?E|[fd])+)E", rest)
    if not arguments:
        return name
    found = re.findall(r"L[a-z](\d+)E|NS_\d+(\w+?)E|([fd])", arguments[1])
    return f"{name}<{','.join(''.join(parts) for parts in found)}>"


def resources(listing: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Mangled name -> (registers, local bytes, shared bytes), from ``cuobjdump --dump-resource-usage``."""
    result, name = {}, ""
    for line in listing:
        if head := re.match(r"\s*Function (\S+):\s*$", line):
            name = head[1]
        elif used := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            result[name] = (int(used[1]), int(used[2]) + int(used[4]), int(used[3]))
    return result


_FLOAT_ATOMIC = re.compile(r"(RED|REDG|ATOM|ATOMG|ATOMS)\..*B?F(16|32|64)")


def forbidden(code: Sequence[Instruction]) -> tuple[str, ...]:
    """Operations that no kernel may contain."""
    return tuple(sorted({i.operation for i in code if _FLOAT_ATOMIC.match(i.operation) or "TF32" in i.operation}))


def wide_loads(code: Sequence[Instruction]) -> tuple[int, ...]:
    """How many loads of 16 bytes from what is known to be global memory each loop has, where it has any."""
    counts = (sum(i.streams and i.name != "LD" and i.bytes == WIDE for i in loop) for loop in loops(list(code)))
    return tuple(count for count in counts if count)


def kernels(binary: Path, architecture: int, tool: str) -> list[Kernel]:
    """All kernels of one architecture. A function that several files brought counts once."""
    target = ("-arch", f"sm_{architecture}", str(binary))
    used = resources(output(tool, "--dump-resource-usage", *target))
    found = {}
    for mangled, code in functions(output(tool, "-sass", *target)):
        name = readable(mangled)
        found[name] = Kernel(name, architecture, *used[mangled], wide_loads(code), forbidden(code))
    return sorted(found.values(), key=lambda kernel: kernel.name)


# --- rules ------------------------------------------------------------------------------------------------------------------------


def broken(kernel: Kernel) -> Iterator[tuple[str, str]]:
    """The rules that a kernel breaks, exempted or not, and how."""
    if kernel.forbidden:
        yield "exact sums", f"uses {', '.join(kernel.forbidden)}"
    if kernel.shared > rules.STATIC_SHARED_BYTES:
        yield "shared memory", f"{kernel.shared} bytes, where {rules.STATIC_SHARED_BYTES} need no permission"
    if kernel.base not in rules.HOT:
        return
    if kernel.local:
        yield "local memory", f"{kernel.local} bytes a thread"
    if kernel.registers > rules.REGISTERS and not kernel.in_double:
        yield "registers", f"{kernel.registers} a thread, where {rules.REGISTERS} leave room for two blocks"
    hot = rules.HOT[kernel.base]
    rows = min((number for number in (hot.at_once, kernel.rows) if number is not None), default=1)
    asked = (hot.types or kernel.types) * hot.sweeps
    full = sum(count >= rows for count in kernel.wide_loads)
    if full < asked:
        yield (
            "16-byte loads",
            f"{full} loops with at least {rows} of them, where {asked} are wanted, one for each type of gradients in each "
            f"sweep; found loops with {list(kernel.wide_loads)}",
        )


def findings(found: Sequence[Kernel], complete: bool = True) -> list[str]:
    """What is wrong with the kernels; and, where these are all there are, with rules that name what is not there."""
    lines, needed = set(), set()
    for kernel in found:
        if (kernel.base in rules.HOT) == (kernel.base in rules.COLD):
            lines.add(f"{kernel.name}: expected in one of HOT and COLD of tools/kernel_rules.py")
        for rule, how in broken(kernel):
            exempt = next((e for e in rules.EXEMPTIONS if e.rule == rule and re.fullmatch(e.kernel, kernel.name)), None)
            needed.add(exempt)
            if exempt is None:
                lines.add(f"{kernel.name} on sm_{kernel.architecture}: {rule}: {how}")
    if complete:
        absent = {*rules.HOT, *rules.COLD} - {kernel.base for kernel in found}
        lines |= {f"{name}: in tools/kernel_rules.py, but no such kernel was built" for name in absent}
        lines |= {f"{e.kernel}: exempted from '{e.rule}' without need" for e in rules.EXEMPTIONS if e not in needed}
    return sorted(lines)


# --- the document -----------------------------------------------------------------------------------------------------------------


def document(found: Sequence[Kernel], made_by: str) -> str:
    """docs/kernels.md"""
    by_name: dict[str, dict[int, Kernel]] = {}
    for kernel in sorted(found, key=lambda k: ([*rules.HOT, *rules.COLD].index(k.base), k.in_double, _natural(k.name))):
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    hottest = {name: at for name, at in by_name.items() if name.split("<", 1)[0] in rules.HOT}
    others = {name: at for name, at in by_name.items() if name not in hottest}
    named = ", ".join(f"sm_{a}" for a in sorted({kernel.architecture for kernel in found}))
    return "\n".join(
        [
            "# Kernels",
            "",
            INTRODUCTION.format(compiler=made_by, architectures=named),
            "## Hot: they read the gradients",
            "",
            *(f"- `{name}`: {hot.purpose}" for name, hot in rules.HOT.items()),
            "",
            *_table(["kernel", "registers", "local memory", "shared memory", "16-byte loads"], hottest, _hot_cells),
            "Of these, not everything is asked:",
            "",
            *(f"- `{e.kernel}`, {e.rule}: {e.reason}." for e in rules.EXEMPTIONS),
            "",
            "## Others",
            "",
            *_table(["kernel", "registers", "local memory", "shared memory", ""], others, _cold_cells),
        ]
    )


def _natural(name: str) -> list[int | str]:
    """Sorts 16 after 8."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _table(header: Sequence[str], rows: Mapping[str, dict[int, Kernel]], cells: Callable[[list[Kernel]], list[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "| --- | --: | --: | --: | --- |"]
    lines += [f"| `{name}` | {' | '.join(cells([at[a] for a in sorted(at)]))} |" for name, at in rows.items()]
    return [*lines, ""]


def _memory(kernel: Sequence[Kernel]) -> list[str]:
    return [_each([getattr(k, field) for k in kernel]) for field in ("registers", "local", "shared")]


def _hot_cells(kernel: Sequence[Kernel]) -> list[str]:
    return [*_memory(kernel), _each([" + ".join(map(str, sorted(k.wide_loads))) or "none" for k in kernel])]


def _cold_cells(kernel: Sequence[Kernel]) -> list[str]:
    return [*_memory(kernel), rules.COLD[kernel[0].base]]


def _each(values: Sequence[object]) -> str:
    """One value where all agree, else each."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--binary", type=Path, help="write nothing, and do not ask for all kernels")
    a = parser.parse_args(arguments)
    binary, tool = a.binary or extension(), disassembler()
    if binary is None or not binary.exists():
        raise SystemExit("no extension with CUDA kernels was found: build it with GRADSURGERY_CUDA=1, or name it with --binary.")
    if tool is None:
        raise SystemExit("cuobjdump was not found: set CUOBJDUMP, or install it (CUDA toolkit, or `pip install triton`).")
    there = [sm for sm in architectures(output(tool, "-lelf", str(binary))) if sm in rules.ARCHITECTURES]
    if not there:
        raise SystemExit(f"{binary}: expected kernels for one of {rules.ARCHITECTURES}, found none; see TORCH_CUDA_ARCH_LIST.")
    with ProcessPoolExecutor() as readers:
        found = [kernel for each in readers.map(partial(kernels, binary, tool=tool), there) for kernel in each]
    wrong = findings(found, complete=a.binary is None)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    print(f"{len(found)} kernels for {', '.join(f'sm_{sm}' for sm in there)} keep the rules.")
    if not a.check and a.binary is None:
        DOCS.write_text(document(found, compiler(output(tool, "-elf", "-arch", f"sm_{there[-1]}", str(binary)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
