"""Who is compared: PCGrad on one [T, N] matrix of task gradients, five ways.

A new provider is one file with a ``Provider`` in it, and one line here. Each draws a random order for every task, as in the paper.
"""

from .explicit import EXPLICIT
from .gradsurgery import GRADSURGERY
from .gram import GRAM
from .provider import Provider, Run
from .torchjd import TORCHJD
from .written import WRITTEN

PROVIDERS: dict[str, Provider] = {p.name: p for p in (GRADSURGERY, TORCHJD, GRAM, EXPLICIT, WRITTEN)}

__all__ = ["PROVIDERS", "Provider", "Run"]
