"""``gradsurgery info``"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gradsurgery.environment import environment


def show(*, as_json: bool) -> int:
    """Prints the environment. -> exit status"""
    found = environment()
    print(json.dumps(found, indent=2) if as_json else as_text(found))
    return 0


def as_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A block a section, a line a fact."""
    blocks = []
    for section, facts in found.items():
        width = max(map(len, facts), default=0)
        lines = [f"  {name.ljust(width)}  {_shown(value)}" for name, value in facts.items()]
        blocks.append("\n".join([section, *(lines or ["  –"])]))
    return "\n\n".join(blocks)


def _shown(value: Any) -> str:
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(f"({_shown(one)})" if isinstance(one, dict) else _shown(one) for one in value)
    return str(value)
