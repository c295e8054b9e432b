"""Docstrings as the API pages take them: a Griffe extension (``extensions`` in mkdocs.yml).

In the code docstrings are plain text: a block of code follows "::", a table has rules of "=", a method's arguments are its options,
and arguments of one meaning share a line. Markdown and Griffe have other words for the four.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Class, Extension, Function, Module

LITERAL = re.compile(r"^(?P<indent> *)(?P<lead>.*?)::\n\n(?P<block>(?:(?P=indent) +.*\n|\n)+)", re.MULTILINE)
TABLE = re.compile(
    r"^(?P<indent> *)(?P<rule>=+(?: +=+)+)\n(?P<head>.*)\n(?P=indent)(?P=rule)\n(?P<rows>(?:.*\n)+?)(?P=indent)(?P=rule)$",
    re.MULTILINE,
)


SHARED = re.compile(r"^(?P<indent> +)(?P<names>[a-z_]+(?:, [a-z_]+)+): (?P<said>.*\n(?:(?P=indent) +.*\n)*)", re.MULTILINE)
ARGUMENTS = re.compile(r"^(?P<indent> *)Args:\n(?:(?P=indent) +.*\n|\n)+", re.MULTILINE)


def _code(found: re.Match[str]) -> str:
    lead = found["lead"] + ":\n\n" if found["lead"].strip() else ""
    block = textwrap.dedent(found["block"]).strip("\n")
    return textwrap.indent(f"{lead}```python\n{block}\n```\n\n", found["indent"])


def _cells(line: str, starts: list[int]) -> list[str]:
    return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]


def _table(found: re.Match[str]) -> str:
    rule, indent = found["rule"], len(found["indent"])
    starts = [column.start() for column in re.finditer("=+", rule)]
    rows = [_cells(line[indent:], starts) for line in (found["head"], *found["rows"].splitlines())]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in starts) + " |")
    return textwrap.indent("\n".join(lines), found["indent"])


def _each(found: re.Match[str]) -> str:
    return "".join(f"{found['indent']}{name}: {found['said']}" for name in found["names"].split(", "))


def in_markdown(text: str) -> str:
    """A docstring's text in Markdown."""
    text = TABLE.sub(_table, LITERAL.sub(_code, text.rstrip("\n") + "\n"))
    text = re.sub(r"^( *)Options:$", r"\1Args:", text, flags=re.MULTILINE)
    return ARGUMENTS.sub(lambda arguments: SHARED.sub(_each, arguments.group()), text).rstrip("\n")


class InMarkdown(Extension):
    """Rewrites every docstring before it is parsed."""

    def _renew(self, of: Module | Class | Function | Any) -> None:
        if of.docstring is not None:
            of.docstring.value = in_markdown(of.docstring.value)

    def on_module(self, *, mod: Module, **kwargs: Any) -> None:
        """Of a module."""
        self._renew(mod)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Of a class."""
        self._renew(cls)

    def on_function(self, *, func: Function, **kwargs: Any) -> None:
        """Of a function or method."""
        self._renew(func)

    def on_attribute(self, *, attr: Any, **kwargs: Any) -> None:
        """Of an attribute or property."""
        self._renew(attr)
