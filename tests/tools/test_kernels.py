"""The rules for compiled kernels: each can be broken, and the report says what was found."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import kernel_rules as rules
import kernels as tool
import pytest
from kernels import Kernel, architectures, broken, compiler, document, findings, forbidden, readable, resources
from sass import Instruction

GOOD = Kernel("gram_small<3,f>", 90, 64, local=0, shared=1408, wide_loads=(6, 6, 6), forbidden=())
# Of a kernel for one architecture; {width} is that of its loads.
CUBIN = """
		Function : _ZN11gradsurgery9ema_rowsI{run}EEvNS_5TableE
{loops}
        /*0900*/                   EXIT ;
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN11gradsurgery8ema_rowsIfEEvNS_5TableE:
  REG:60 STACK:{stack} SHARED:64 LOCAL:0 CONSTANT[0]:4264 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def made(**changes: object) -> list[str]:
    return [rule for rule, _ in broken(replace(GOOD, **changes))]  # type: ignore[arg-type]


def test_a_kernel_that_keeps_the_rules() -> None:
    assert made() == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"local": 8}, "local memory"),
        ({"registers": 136}, "registers"),
        ({"wide_loads": (6, 6)}, "16-byte loads"),  # one type of gradients is read in narrower pieces
        ({"wide_loads": (6, 6, 2)}, "16-byte loads"),  # not all rows
        ({"wide_loads": ()}, "16-byte loads"),
        ({"shared": 48 * 1024 + 16}, "shared memory"),
        ({"forbidden": ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU",)}, "exact sums"),
    ],
)
def test_each_rule_can_be_broken(changes: dict[str, object], rule: str) -> None:
    assert made(**changes) == [rule]
    (line,) = findings([replace(GOOD, **changes)], complete=False)  # type: ignore[arg-type]
    assert line.startswith(f"gram_small<3,f> on sm_90: {rule}: ")


def test_float64_needs_a_loop_more_and_may_have_more_registers() -> None:
    assert made(name="gram_small<2,d>", registers=170) == ["16-byte loads"]
    assert made(name="gram_small<2,d>", registers=170, wide_loads=(8, 8, 8, 8)) == []


def test_every_sweep_wants_its_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.HOT, "gram_small", rules.Hot("reads twice", sweeps=2))
    assert made() == ["16-byte loads"]
    assert made(wide_loads=(6,) * 6) == []


def test_a_loop_may_read_fewer_rows_at_once_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(name="gram_small<8,f>", wide_loads=(4, 4, 4)) == ["16-byte loads"]
    monkeypatch.setitem(rules.HOT, "gram_small", rules.Hot("reads four", at_once=4))
    assert made(name="gram_small<8,f>", wide_loads=(4, 4, 4)) == []
    assert made(name="gram_small<8,f>", wide_loads=(4, 4, 3)) == ["16-byte loads"]
    assert made(name="gram_small<2,f>", wide_loads=(2, 2, 2)) == []


def test_what_is_not_hot_may_spill() -> None:
    assert made(name="solve_weights<UPGrad>", local=152, registers=232, wide_loads=()) == []
    assert made(name="solve_weights<UPGrad>", forbidden=("ATOMG.E.ADD.F64.RN",)) == ["exact sums"]


def test_exemptions_are_for_one_rule_of_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    spilling = replace(GOOD, local=8)
    monkeypatch.setattr(rules, "EXEMPTIONS", (rules.Exemption(r"gram_small<\d,f>", "local memory", "a reason"),))
    assert findings([spilling], complete=False) == []
    assert len(findings([replace(spilling, registers=255)], complete=False)) == 1
    assert len(findings([replace(spilling, name="gram_small<3,d>", wide_loads=(6,) * 4)], complete=False)) == 1


def test_exemptions_that_nothing_needs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "HOT", {"gram_small": rules.Hot("")})
    monkeypatch.setattr(rules, "COLD", {})
    monkeypatch.setattr(rules, "EXEMPTIONS", (rules.Exemption("gram_small<3,f>", "local memory", "a reason"),))
    assert findings([GOOD]) == ["gram_small<3,f>: exempted from 'local memory' without need"]


def test_every_kernel_is_entered_and_every_entry_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "EXEMPTIONS", ())
    monkeypatch.setattr(rules, "HOT", {"gram_small": rules.Hot(""), "gone": rules.Hot("")})
    monkeypatch.setattr(rules, "COLD", {"lost": ""})
    assert findings([GOOD, replace(GOOD, name="new<1>")]) == [
        "gone: in tools/kernel_rules.py, but no such kernel was built",
        "lost: in tools/kernel_rules.py, but no such kernel was built",
        "new<1>: expected in one of HOT and COLD of tools/kernel_rules.py",
    ]
    monkeypatch.setattr(rules, "COLD", {"gram_small": ""})
    assert findings([GOOD], complete=False) == ["gram_small<3,f>: expected in one of HOT and COLD of tools/kernel_rules.py"]


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN11gradsurgery10gram_smallILi8EfEEvNS_5TableEPd", "gram_small<8,f>"),
        ("_ZN11gradsurgery14combine_chunksILi3ELb1EdEEvNS_5TableEPKdb", "combine_chunks<3,1,d>"),
        ("_ZN11gradsurgery13solve_weightsINS_6UPGradEEEvNS_9SolveCudaE", "solve_weights<UPGrad>"),
        ("_ZN11gradsurgeryL11write_tableENS_10TableSliceEiPl", "write_table"),
        ("_ZN11gradsurgery12pcgrad_solveENS_10PcgradCudaE", "pcgrad_solve"),
    ],
)
def test_names_are_readable(mangled: str, name: str) -> None:
    assert readable(mangled) == name


def test_resources_are_those_of_each_function() -> None:
    more = USAGE.format(stack=56) + " Function advance_step:\n  REG:8 STACK:0 SHARED:0 LOCAL:16 CONSTANT[0]:360 TEXTURE:0\n"
    assert resources(more.splitlines()) == {"_ZN11gradsurgery8ema_rowsIfEEvNS_5TableE": (60, 56, 64), "advance_step": (8, 16, 0)}


def test_architectures_and_compiler_are_those_of_the_binary() -> None:
    listing = ["ELF file    1: _cuda.abi3.1.sm_75.cubin", "ELF file    2: x.2.sm_90a.cubin", "ELF file    3: x.3.sm_75.cubin"]
    assert architectures(listing) == [75, 90]
    dump = [
        "64-bit ELF: sm=80, toolkit=13.0",
        "\tTool Name: ptxas",
        "\tTool Version: Cuda compilation tools, release 13.0, V13.0.88",
    ]
    assert compiler(dump) == "Cuda compilation tools, release 13.0, V13.0.88"
    assert compiler([]) == "an unknown compiler"


@pytest.mark.parametrize(
    ("operation", "refused"),
    [
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", True),
        ("REDG.E.ADD.F64.RN.STRONG.GPU", True),
        ("ATOMS.CAS.F32", True),
        ("ATOMG.E.ADD.BF16x2.RN", True),
        ("HMMA.1684.F32.TF32", True),
        ("ATOMG.E.ADD.STRONG.GPU", False),  # a barrier between blocks counts
        ("HMMA.16816.F32.BF16", False),
        ("REDUX.SUM", False),
    ],
)
def test_what_no_kernel_may_contain(operation: str, refused: bool) -> None:
    assert bool(forbidden([Instruction(0, operation, "R0, R1", conditional=False)])) == refused


def test_the_document_says_what_each_architecture_has() -> None:
    text = document([GOOD, replace(GOOD, architecture=100, registers=59), replace(GOOD, name="gram_small<16,f>")], "nvcc 1.2")
    assert "from the machine code of nvcc 1.2 for sm_90, sm_100." in text
    assert "| `gram_small<3,f>` | 64, 59 | 0 | 1408 | 6 + 6 + 6 |" in text
    assert text.index("gram_small<3,f>` | ") < text.index("gram_small<16,f>` | ")
    for exemption in rules.EXEMPTIONS:
        assert f"- `{exemption.kernel}`, {exemption.rule}: {exemption.reason}." in text


def recorded(folder: Path, width: str, stack: int = 0) -> None:
    """A cuobjdump that answers with texts."""
    types = range(3)
    loops = "\n".join(
        f"        /*{0x100 * k:04x}*/                   LDG.E{width} R4, desc[UR4][R2.64] ;\n"
        f"        /*{0x100 * k + 16:04x}*/               @P0 BRA 0x{0x100 * k:x} ;"
        for k in types
    )
    (folder / "elf").write_text("ELF file    1: x.1.sm_90.cubin\n")
    (folder / "usage").write_text(USAGE.format(stack=stack))
    (folder / "sass").write_text(CUBIN.format(run="f", loops=loops).replace("9ema_rows", "8ema_rows"))
    script = folder / "cuobjdump"
    script.write_text(
        f'#!/bin/sh\ncd {folder}\ncase "$1" in -lelf) cat elf;; --dump-resource-usage) cat usage;; *) cat sass;; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def test_the_check_reads_a_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "kernels.o"
    binary.touch()
    monkeypatch.setenv("CUOBJDUMP", str(tmp_path / "cuobjdump"))
    recorded(tmp_path, ".128")
    assert tool.main(["--check", "--binary", str(binary)]) == 0
    assert capsys.readouterr().out == "1 kernels for sm_90 keep the rules.\n"
    recorded(tmp_path, ".64", stack=24)
    assert tool.main(["--check", "--binary", str(binary)]) == 1
    said = capsys.readouterr().err
    assert "ema_rows<f> on sm_90: local memory: 24 bytes a thread\n" in said
    assert "ema_rows<f> on sm_90: 16-byte loads: 0 loops with at least 1 of them, where 3 are wanted" in said
    (tmp_path / "elf").write_text("ELF file    1: x.1.sm_75.cubin\n")
    with pytest.raises(SystemExit, match=r"expected kernels for one of \(80, 90, 100\), found none"):
        tool.main(["--check", "--binary", str(binary)])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no extension with CUDA kernels was found"):
        tool.main(["--check", "--binary", str(tmp_path / "nothing.o")])
    binary = tmp_path / "kernels.o"
    binary.touch()
    monkeypatch.setattr(tool, "disassembler", lambda: None)
    with pytest.raises(SystemExit, match="cuobjdump was not found: set CUOBJDUMP"):
        tool.main(["--check", "--binary", str(binary)])
    monkeypatch.undo()
    monkeypatch.setenv("CUOBJDUMP", "false")
    with pytest.raises(SystemExit, match="false -lelf"):
        tool.main(["--check", "--binary", str(binary)])
