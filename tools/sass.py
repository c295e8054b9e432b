"""Machine code of NVIDIA GPUs as cuobjdump lists it: instructions, and the loops they form."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``operation`` is the word with its suffixes: ``LDG.E.128``."""

    address: int
    operation: str
    operands: str
    conditional: bool

    @property
    def name(self) -> str:
        """``LDG`` of ``LDG.E.128``."""
        return self.operation.split(".", 1)[0]

    @property
    def target(self) -> int:
        """The address that a branch names last."""
        return int(re.findall(r"0x([0-9a-f]+)", self.operands)[-1], 16)

    @property
    def bytes(self) -> int:
        """How many a load brings to one thread."""
        return next((_BYTES[part] for part in self.operation.split(".")[1:] if part in _BYTES), 4)

    @property
    def streams(self) -> bool:
        """Whether this reads device memory: ``LDG``, ``LDGSTS``, or ``LD``, which may."""
        return self.name in {"LD", "LDG", "LDGSTS"}


def functions(listing: Iterable[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """The mangled names in a listing of ``cuobjdump -sass``, and their instructions."""
    name, code = None, list[Instruction]()
    for line in listing:
        if "Function :" in line:
            if name is not None:
                yield name, code
            name, code = line.split(":", 1)[1].strip(), []
        elif found := _INSTRUCTION.match(line):
            code.append(Instruction(int(found[1], 16), found[3], found[4].strip(), found[2] is not None))
    if name is not None:
        yield name, code


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of every loop, without those of loops inside it; in the order in which the loops begin.

    Loops are the natural ones of the control flow, not every branch backwards: blocks that are rarely needed stand at the end of a
    kernel, and return from there.
    """
    blocks, following = _flow(code)
    above = _dominators(following)
    before: dict[int, list[int]] = defaultdict(list)
    for block in above:  # all that can be reached
        for after in following[block]:
            before[after].append(block)
    bodies: dict[int, set[int]] = defaultdict(set)
    for block in above:
        for header in following[block]:
            if _dominates(header, block, above):
                bodies[header] |= _body(header, block, before)
    own = {
        header: body - set[int]().union(*(other for inner, other in bodies.items() if inner != header and inner in body))
        for header, body in bodies.items()
    }
    return [[instruction for block in sorted(own[header]) for instruction in blocks[block]] for header in sorted(own)]


def _flow(code: list[Instruction]) -> tuple[dict[int, list[Instruction]], dict[int, list[int]]]:
    """Basic blocks by their first address, and where each may go on."""
    addresses = [instruction.address for instruction in code]
    reunions = _reunions(code)
    goals = {k: _goals(instruction, reunions.get(k)) for k, instruction in enumerate(code)}
    starts = {0} | {bisect_left(addresses, goal) for found in goals.values() for goal in found or ()}
    starts |= {k + 1 for k, found in goals.items() if found is not None}
    edges = [*sorted(start for start in starts if start < len(code)), len(code)]
    blocks, following = {}, {}
    for first, end in pairwise(edges):
        last, found = code[end - 1], goals[end - 1]
        nexts = list(found or ())
        if end < len(code) and (found is None or last.conditional or last.operation in _MAY_FALL_THROUGH):
            nexts.append(addresses[end])
        blocks[addresses[first]] = code[first:end]
        following[addresses[first]] = nexts
    return blocks, following


# Conditional by an operand rather than by a predicate.
_MAY_FALL_THROUGH = {"BRA.DIV", "BRA.CONV", "BRA.U"}


def _goals(instruction: Instruction, reunion: int | None) -> list[int] | None:
    """Where an instruction may jump; None where it goes on to the next. A call comes back, and counts as going on."""
    if instruction.name == "BRA":
        return [instruction.target]
    if instruction.name in {"EXIT", "RET", "BRX", "JMX", "BPT"}:
        return []
    return None if reunion is None else [reunion]


def _reunions(code: list[Instruction]) -> dict[int, int]:
    """Where the threads that wait at a BSYNC go on: where the BSSY before it that names the same barrier says."""
    said: dict[str, int] = {}
    result = {}
    for k, instruction in enumerate(code):
        barrier = instruction.operands.split(",")[0].strip()
        if instruction.name == "BSSY":
            said[barrier] = instruction.target
        elif instruction.name == "BSYNC" and barrier in said:
            result[k] = said[barrier]
    return result


def _dominators(following: dict[int, list[int]]) -> dict[int, int]:
    """Of each block that can be reached, the last one before it that cannot be avoided (Cooper, Harvey and Kennedy, 2001)."""
    entry = min(following)
    order: list[int] = []
    seen, waiting = {entry}, [(entry, iter(following[entry]))]
    while waiting:
        block, nexts = waiting[-1]
        after = next(nexts, None)
        if after is None:
            order.append(block)
            waiting.pop()
        elif after not in seen:
            seen.add(after)
            waiting.append((after, iter(following[after])))
    rank = {block: k for k, block in enumerate(order)}
    before: dict[int, list[int]] = defaultdict(list)
    for block in order:
        for after in following[block]:
            before[after].append(block)
    above, changed = {entry: entry}, True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [other for other in before[block] if other in above]
            nearest = known[0]
            for other in known[1:]:
                nearest = _common(nearest, other, above, rank)
            changed |= above.get(block) != nearest
            above[block] = nearest
    return above


def _common(a: int, b: int, above: dict[int, int], rank: dict[int, int]) -> int:
    while a != b:
        if rank[a] < rank[b]:
            a = above[a]
        else:
            b = above[b]
    return a


def _dominates(header: int, block: int, above: dict[int, int]) -> bool:
    while block != header and above[block] != block:
        block = above[block]
    return block == header


def _body(header: int, last: int, before: dict[int, list[int]]) -> set[int]:
    """The blocks from which ``last``, which jumps back to the header, is reached without passing the header."""
    body, waiting = {header}, [last]
    while waiting:
        block = waiting.pop()
        if block not in body:
            body.add(block)
            waiting += before[block]
    return body
