"""What in the README is made from the code: the tables of methods and balancers, and the commands that CI runs.

python tools/readme.py            rewrite the tables
python tools/readme.py --check    fail if they are out of date
python tools/readme.py --command train|test    print a command
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


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


def with_tables(text: str) -> str:
    """The README with its tables renewed."""
    tables = {"methods": method_table(), "properties": property_table(), "balancers": balancer_table()}
    for name, table in tables.items():
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
    text = README.read_text()
    renewed = with_tables(text)
    if arguments.check:
        if renewed != text:
            print("README.md: a table is out of date; run python tools/readme.py", file=sys.stderr)
        return int(renewed != text)
    README.write_text(renewed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
