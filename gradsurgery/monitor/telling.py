"""What a monitor has to say, which is never to end the training that it watches."""

from __future__ import annotations

import sys
import warnings


def tell(message: str) -> None:
    """A warning that never becomes an error: where warnings are made errors, it goes to stderr instead."""
    try:
        warnings.warn(message, stacklevel=3)
    except Warning:
        print(message, file=sys.stderr)
