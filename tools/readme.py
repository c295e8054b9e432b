"""What in the README is made from the code: the tables of methods and balancers, and the commands that CI runs.

python tools/readme.py            rewrite the tables
python tools/readme.py --check    fail if they are out of date
python tools/readme.py --command train|test    print a command
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str) -> str:
    """The shell command that the README prints under ``<!-- command: name -->``."""
    found = re.search(rf"<!-- command: {re.escape(name)} -->\n```bash\n(.*?)\n```", README.read_text(), flags=re.DOTALL)
    if found is None:
        raise SystemExit(f"{README}: expected a bash block under <!-- command: {name} -->, found none.")
    return found.group(1)


def method_table() -> str:
    """A row for every registered method."""
    import gradsurgery

    lines = ["| method | weights | options | source |", "| --- | --- | --- | --- |"]
    for spec in gradsurgery.methods().values():
        options = ", ".join(f"`{name}={default!r}`" for name, default in spec.options.items()) or "–"
        lines.append(f"| `{spec.name}` | {spec.summary} | {options} | {spec.paper} |")
    return "\n".join(lines) + "\n"


def balancer_table() -> str:
    """A row for every registered balancer."""
    import gradsurgery

    lines = ["| balancer | `--balancer` | loss | options | source |", "| --- | --- | --- | --- | --- |"]
    for spec in gradsurgery.balancers().values():
        options = ", ".join(f"`{name}={default!r}`" for name, default in spec.options.items()) or "–"
        lines.append(f"| `{spec.cls.__name__}` | `{spec.name}` | {spec.summary} | {options} | {spec.paper} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """The README with its tables renewed."""
    for name, table in (("methods", method_table()), ("balancers", balancer_table())):
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
