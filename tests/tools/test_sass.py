"""Machine code is read as it is listed, and its loops are those of the control flow."""

from __future__ import annotations

import pytest
from sass import Instruction, functions, loops

# A grid-stride loop as nvcc compiles it for sm_90, shortened: an inner loop with loads of 16 bytes, one for the edges, a rare block
# that stands at the end and returns, and the trap after the last EXIT, which nothing reaches.
KERNEL = """
Fatbin elf code:
================
arch = sm_90
		Function : _ZN11gradsurgery10gram_smallILi2EfEEvNS_5TableEPd
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                          /* 0x00000a00ff017b82 */
                                                                                   /* 0x000fe20000000800 */
        /*0010*/                   BSSY B0, 0xd0 ;                                 /* 0x000000b000007945 */
                                                                                   /* 0x000fe20003800000 */
        /*0020*/               @P1 LD.E.64 R4, desc[UR4][R2.64] ;                  /* 0x0000000402041980 */
        /*0030*/              @!P4 LDG.E.128 R12, desc[UR4][R40.64] ;              /* 0x000000042804c981 */
        /*0040*/              @!P5 LDG.E.128 R16, desc[UR4][R38.64+0x1000] ;       /* 0x000000042604c981 */
        /*0050*/                   BRA.DIV UR6, 0x120 ;                            /* 0x0000000600007947 */
        /*0060*/                   FFMA R8, R12, R12, R8 ;                         /* 0x0000000c0c087223 */
        /*0070*/              @!P1 BRA 0x30 ;                                      /* 0xfffffffc00ec9947 */
        /*0080*/               @P2 BRA 0xc0 ;                                      /* 0x000000000020a947 */
        /*0090*/                   LDG.E.U16 R14, desc[UR4][R14.64] ;              /* 0x000000040e0e7981 */
        /*00a0*/               @P3 BRA 0x90 ;                                      /* 0xfffffffc00ec9947 */
        /*00b0*/                   NOP ;                                           /* 0x0000000000007918 */
        /*00c0*/                   BSYNC B0 ;                                      /* 0x0000000000007941 */
        /*00d0*/                   STG.E.64 desc[UR4][R2.64], R8 ;                 /* 0x0000000802007986 */
        /*00e0*/              @!P0 BRA 0x10 ;                                      /* 0xfffffffc00ec8947 */
        /*00f0*/                   EXIT ;                                          /* 0x000000000000794d */
        /*0100*/                   BRA 0x100;                                      /* 0xfffffffc00fc7947 */
        /*0110*/                   NOP;                                            /* 0x0000000000007918 */
        /*0120*/                   WARPSYNC.COLLECTIVE R6, 0x130 ;                 /* 0x0000000006007348 */
        /*0130*/                   BRA 0x60 ;                                      /* 0xfffffffc00ec7947 */
		Function : advance_step
        /*0000*/                   EXIT ;                                          /* 0x000000000000794d */
"""


def code_of(*lines: str) -> list[Instruction]:
    listing = ["Function : f", *(f"        /*{16 * k:04x}*/  {line} ;" for k, line in enumerate(lines))]
    return dict(functions(listing))["f"]


def operations(code: list[Instruction]) -> list[list[str]]:
    return [[instruction.operation for instruction in loop] for loop in loops(code)]


def test_a_listing_is_read_function_by_function() -> None:
    found = dict(functions(KERNEL.splitlines()))
    assert list(found) == ["_ZN11gradsurgery10gram_smallILi2EfEEvNS_5TableEPd", "advance_step"]
    kernel = found["_ZN11gradsurgery10gram_smallILi2EfEEvNS_5TableEPd"]
    assert [i.address for i in kernel] == list(range(0, 0x140, 16))
    assert kernel[3] == Instruction(0x30, "LDG.E.128", "R12, desc[UR4][R40.64]", conditional=True)
    assert (kernel[5].operation, kernel[5].target, kernel[5].conditional) == ("BRA.DIV", 0x120, False)


@pytest.mark.parametrize(
    ("operation", "count", "streams"),
    [
        ("LDG.E.128", 16, True),
        ("LDG.E.128.CONSTANT", 16, True),
        ("LDGSTS.E.BYPASS.128", 16, True),
        ("LDG.E.64", 8, True),
        ("LDG.E", 4, True),
        ("LD.E.S8", 1, True),
        ("LDG.E.U16", 2, True),
        ("LDS.128", 16, False),
        ("LDL.64", 8, False),
    ],
)
def test_loads_tell_their_bytes_and_where_they_read(operation: str, count: int, streams: bool) -> None:
    instruction = Instruction(0, operation, "R0, [R2]", conditional=False)
    assert (instruction.bytes, instruction.streams) == (count, streams)


def test_loops_are_without_the_loops_inside_them() -> None:
    outer, wide, edges = operations(dict(functions(KERNEL.splitlines()))["_ZN11gradsurgery10gram_smallILi2EfEEvNS_5TableEPd"])
    assert outer == ["BSSY", "LD.E.64", "BRA", "NOP", "BSYNC", "STG.E.64", "BRA"]
    # The block at the end belongs to the loop that it returns to.
    assert wide == ["LDG.E.128", "LDG.E.128", "BRA.DIV", "FFMA", "BRA", "WARPSYNC.COLLECTIVE", "BRA"]
    assert edges == ["LDG.E.U16", "BRA"]


def test_a_block_that_stands_elsewhere_and_returns_is_no_loop() -> None:
    assert operations(code_of("@P0 BRA 0x40", "NOP", "STG.E [R2], R4", "EXIT", "MUFU.RCP R0, R1", "BRA 0x20")) == []


def test_threads_that_wait_for_each_other_go_on_where_they_were_told() -> None:
    # Round by round: the BSYNC at the end jumps to the place behind the loop, not to what follows it in the listing.
    code = code_of(
        "BSSY.RECONVERGENT B0, 0x40", "@P0 BRA 0x60", "LDG.E R0, [R2]", "@P1 BRA 0x20", "EXIT", "NOP", "BSYNC B0", "BRA 0x0"
    )
    assert operations(code) == [["LDG.E", "BRA"]]


def test_a_branch_by_a_uniform_predicate_may_go_on() -> None:
    assert operations(code_of("NOP", "BRA.U UP0, 0x0", "LDG.E R0, [R2]", "@!UP0 BRA 0x20", "EXIT")) == [
        ["NOP", "BRA.U"],
        ["LDG.E", "BRA"],
    ]


def test_two_ways_back_are_one_loop() -> None:
    assert operations(code_of("LDG.E R0, [R2]", "@P0 BRA 0x0", "LDS R1, [R3]", "@P1 BRA 0x0", "EXIT")) == [
        ["LDG.E", "BRA", "LDS", "BRA"]
    ]
