"""What a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def expected(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones; it names the closest one, if there is any."""
    names = sorted(known)
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    if close:
        return f"{what}: did you mean {lower[close[0]]!r}? Expected one of {', '.join(names)}, found {name!r}."
    return f"{what}: expected one of {', '.join(names)}, found {name!r}."
