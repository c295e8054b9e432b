"""What a call says that goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def said(action: Callable[[], Any]) -> str:
    """The error's type and words; "nothing" where there is none."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return "nothing"
