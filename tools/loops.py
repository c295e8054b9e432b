"""The diffs in docs/loops.md, made from the pairs in tests/loops: before.py is a loop without surgery, after.py the same with it.

python tools/loops.py            rewrite the diffs
python tools/loops.py --check    fail if they are out of date
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "loops.md"
PAIRS = ROOT / "tests" / "loops"


def names() -> list[str]:
    """The loops there are."""
    return sorted(path.parent.name for path in PAIRS.glob("*/before.py"))


def lines(name: str) -> tuple[list[str], list[str]]:
    """A loop before and after."""
    before, after = (PAIRS / name / f"{when}.py" for when in ("before", "after"))
    return before.read_text().splitlines(), after.read_text().splitlines()


def changed(name: str) -> int:
    """How many lines a user changes: those added, removed or rewritten, but for empty ones. A rewritten line counts once."""
    before, after = lines(name)
    edits = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(sum(map(bool, before[i:j])), sum(map(bool, after[k:m]))) for kind, i, j, k, m in edits if kind != "equal")


def diff(name: str) -> str:
    """The whole loop as a diff."""
    before, after = lines(name)
    shown = list(difflib.unified_diff(before, after, lineterm="", n=len(before)))[3:]  # without names of files and numbers of lines
    return "```diff\n" + "\n".join(line.rstrip() for line in shown) + "\n```\n"


def with_diffs(text: str) -> str:
    """The page with its diffs renewed.

    Raises:
        SystemExit: the page shows other loops than there are.
    """
    shown = re.findall(r"<!-- loop: (\w+): begin -->\n", text)
    if sorted(shown) != names():
        raise SystemExit(f"{DOCS}: expected a diff of each of {names()}, found {sorted(shown)}.")
    for name in shown:
        begin, end = f"<!-- loop: {name}: begin -->\n", f"<!-- loop: {name}: end -->\n"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = head + begin + diff(name) + end + tail
    return text


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = DOCS.read_text()
    renewed = with_diffs(text)
    if arguments.check:
        if renewed != text:
            print("docs/loops.md: a diff is out of date; run python tools/loops.py", file=sys.stderr)
        return int(renewed != text)
    DOCS.write_text(renewed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
