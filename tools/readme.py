"""What in the README and in docs/choosing.md is made from the code: tables of methods and balancers; and the commands that CI runs.

python tools/readme.py            rewrite the tables
python tools/readme.py --check    fail if they are out of date
python tools/readme.py --command train|test    print a command
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README, CHOOSING = ROOT / "README.md", ROOT / "docs" / "choosing.md"


def command(name: str) -> str:
    """The shell command that the README prints under ``<!-- command: name -->``."""
    found = re.search(rf"<!-- command: {re.escape(name)} -->\n```bash\n(.*?)\n```", README.read_text(), flags=re.DOTALL)
    if found is None:
        raise SystemExit(f"{README}: expected a bash block under <!-- command: {name} -->, found none.")
    return found.group(1)


FAMILIES = {
    "gram": "From the Gram matrix alone: K → w, two reads of the gradients.",
    "scalarization": "Weights that the gradients do not decide.",
    "cross": "From the products of two batches' gradients (`against=`); without a second batch, from K.",
    "buffered": "With buffers of the gradients' size, updated in the pass that reads the gradients; one buffer a task.",
    "coordinatewise": "Every coordinate by itself, in one read: no K, and no weights.",
}
PROMISES = {  # of a method's properties, those that choose between methods
    "non_conflicting": "no task gets worse",
    "direction_invariant_to_row_scaling": "lengths do not matter",
    "linear_under_scaling": "linear in lengths",
    "permutation_equivariant": "order does not matter",
}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={default!r}`" for name, default in options.items()) or "–"


def method_table() -> str:
    """A row for every registered method, by family."""
    import gradsurgery

    lines: list[str] = []
    for family, words in FAMILIES.items():
        lines += [words, "", _row("method", "formula", "options", "degree", "promises", "source"), _row(*["---"] * 6)]
        for spec in gradsurgery.methods().values():
            if spec.family == family:
                promises = ", ".join(said for name, said in PROMISES.items() if name in spec.properties) or "–"
                needs = "".join(f", takes `{need}=`" for need in sorted(spec.needs))
                degree = "–" if spec.degree is None else f"{spec.degree:g}"
                lines.append(_row(f"`{spec.name}`{needs}", spec.summary, _options(spec.options), degree, promises, spec.paper))
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def balancer_table() -> str:
    """A row for every registered balancer."""
    import gradsurgery

    lines = [_row("balancer", "`--balancer`", "loss", "options", "source"), _row(*["---"] * 5)]
    lines += [
        _row(f"`{spec.cls.__name__}`", f"`{spec.name}`", spec.summary, _options(spec.options), spec.paper)
        for spec in gradsurgery.balancers().values()
    ]
    return "\n".join(lines) + "\n"


def property_table() -> str:
    """A row for every property that a method may declare."""
    from gradsurgery.methods.registry import PROPERTIES

    lines = [_row("property", "of the result A(G)"), _row(*["---"] * 2)]
    lines += [
        _row(f"`{name}`", f"{said}; in the table: {PROMISES[name]}" if name in PROMISES else said)
        for name, said in PROPERTIES.items()
    ]
    return "\n".join(lines) + "\n"


COLUMNS = {  # of docs/choosing.md
    "non_conflicting": "no task gets worse",
    "direction_invariant_to_row_scaling": "lengths do not matter",
    "sum_without_conflict": "the sum without conflict",
    "mean_without_conflict": "the mean without conflict",
    "weights_nonnegative": "no negative weight",
    "zero_row_neutral": "a zero gradient is ignored",
    "permutation_equivariant": "order does not matter",
}
COSTS = {
    "gram": "two reads",
    "scalarization": "two reads",
    "cross": "two reads, and a second batch",
    "buffered": "two reads or three, and a buffer a task",
    "coordinatewise": "one read",
}


def guarantee_table() -> str:
    """A row for every registered method, with a mark for every property it declares."""
    import gradsurgery

    lines = [_row("method", *COLUMNS.values(), "degree", "cost"), _row(*["---"] * (len(COLUMNS) + 3))]
    for family, cost in COSTS.items():
        for spec in gradsurgery.methods().values():
            if spec.family == family:
                marks = ["✓" if name in spec.properties else "" for name in COLUMNS]
                degree = "–" if spec.degree is None else f"{spec.degree:g}"
                lines.append(_row(f"`{spec.name}`", *marks, degree, cost))
    return "\n".join(lines) + "\n"


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"methods": method_table, "properties": property_table, "balancers": balancer_table},
    CHOOSING: {"guarantees": guarantee_table},
}


def with_tables(text: str, page: Path = README) -> str:
    """A page with its tables renewed."""
    for name, made in PAGES[page].items():
        table = made()
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = head + begin + table + end + tail
    return text


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--command", choices=("train", "test"))
    arguments = parser.parse_args()
    if arguments.command:
        print(command(arguments.command))
        return 0
    status = 0
    for page in PAGES:
        text = page.read_text()
        renewed = with_tables(text, page)
        if not arguments.check:
            page.write_text(renewed)
        elif renewed != text:
            print(f"{page.relative_to(ROOT)}: a table is out of date; run python tools/readme.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
