"""The diffs in docs/loops.md and docs/migrating.md, made from pairs of files that the tests run.

In tests/loops before.py is a loop without surgery, in tests/docs/migrating one with other code for it; after.py is the same with
this library.

python tools/loops.py            rewrite the diffs
python tools/loops.py --check    fail if they are out of date
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Page:
    """A page of diffs, and the folder of the pairs they are made from."""

    path: Path
    pairs: Path

    def names(self) -> list[str]:
        """The loops there are."""
        return sorted(path.parent.name for path in self.pairs.glob("*/before.py"))

    def lines(self, name: str) -> tuple[list[str], list[str]]:
        """A loop before and after."""
        before, after = (self.pairs / name / f"{when}.py" for when in ("before", "after"))
        return before.read_text().splitlines(), after.read_text().splitlines()

    def changed(self, name: str) -> int:
        """How many lines a user changes: those added, removed or rewritten, but for empty ones. A rewritten line counts once."""
        before, after = self.lines(name)
        edits = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        return sum(max(sum(map(bool, before[i:j])), sum(map(bool, after[k:m]))) for kind, i, j, k, m in edits if kind != "equal")

    def diff(self, name: str) -> str:
        """The whole loop as a diff."""
        before, after = self.lines(name)
        shown = list(difflib.unified_diff(before, after, lineterm="", n=len(before)))[
            3:
        ]  # without names of files, numbers of lines
        return "```diff\n" + "\n".join(line.rstrip() for line in shown) + "\n```\n"

    def with_diffs(self, text: str) -> str:
        """The page with its diffs renewed.

        Raises:
            SystemExit: the page shows other loops than there are.
        """
        shown = re.findall(r"<!-- loop: (\w+): begin -->\n", text)
        if sorted(shown) != self.names():
            raise SystemExit(f"{self.path}: expected a diff of each of {self.names()}, found {sorted(shown)}.")
        for name in shown:
            begin, end = f"<!-- loop: {name}: begin -->\n", f"<!-- loop: {name}: end -->\n"
            head, rest = text.split(begin)
            _, tail = rest.split(end)
            text = head + begin + self.diff(name) + end + tail
        return text


LOOPS = Page(ROOT / "docs" / "loops.md", ROOT / "tests" / "loops")
MIGRATING = Page(ROOT / "docs" / "migrating.md", ROOT / "tests" / "docs" / "migrating")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    status = 0
    for page in (LOOPS, MIGRATING):
        text = page.path.read_text()
        renewed = page.with_diffs(text)
        if not arguments.check:
            page.path.write_text(renewed)
        elif renewed != text:
            print(f"{page.path.relative_to(ROOT)}: a diff is out of date; run python tools/loops.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
