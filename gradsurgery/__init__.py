"""gradsurgery."""
__version__ = "0.1.0"
from . import ops
